//! The motions are what they are called, and one frame gives nothing away.

use super::*;
use crate::random::stream;

fn scene(motion: Motion, clip: usize) -> Scene {
    random_scene(motion, &mut stream(99, clip))
}

/// Step of the pose from one frame to the next.
fn step(scene: &Scene, time: f32) -> (f32, f32, f32) {
    let (a, b) = (pose(scene, time), pose(scene, time + 1.0));
    (b.x - a.x, b.y - a.y, b.radius / a.radius)
}

#[test]
fn every_motion_is_what_its_class_says() {
    for clip in 0..50 {
        let still = |value: f32| value.abs() < 1e-4;
        for time in [0.0, 3.0, 6.0] {
            let (dx, dy, _) = step(&scene(Motion::Left, clip), time);
            assert!(dx <= -1.4 && still(dy));
            let (dx, dy, _) = step(&scene(Motion::Right, clip), time);
            assert!(dx >= 1.4 && still(dy));
            let (dx, dy, _) = step(&scene(Motion::Up, clip), time);
            assert!(dy <= -1.4 && still(dx));
            let (dx, dy, _) = step(&scene(Motion::Down, clip), time);
            assert!(dy >= 1.4 && still(dx));
            // The cross product of two steps in a row: positive is clockwise, as y points down.
            let turn = |motion| {
                let (scene, next) = (scene(motion, clip), time + 1.0);
                let ((ax, ay, _), (bx, by, _)) = (step(&scene, time), step(&scene, next));
                ax * by - ay * bx
            };
            assert!(turn(Motion::Clockwise) > 0.0);
            assert!(turn(Motion::CounterClockwise) < 0.0);
            // One step in a cycle jumps back to the other end; every other step grows.
            let (dx, dy, ratio) = step(&scene(Motion::Growing, clip), time);
            assert!(still(dx) && still(dy) && !(0.5..=1.05).contains(&ratio), "{ratio}");
            let (dx, dy, ratio) = step(&scene(Motion::Shrinking, clip), time);
            assert!(still(dx) && still(dy) && !(0.95..=2.0).contains(&ratio), "{ratio}");
        }
    }
}

#[test]
fn a_single_frame_gives_nothing_away() {
    // Position and size of a frame must be uniform whatever the class and the time: count them in eighths.
    const SCENES: usize = 4000;
    let (smallest, largest) = RADIUS;
    for (name, motion) in MOTIONS {
        for time in [0.0, 7.0] {
            let mut counts = [[0usize; 8]; 3];
            for clip in 0..SCENES {
                let pose = pose(&scene(motion, clip), time);
                let size = (pose.radius / smallest).ln() / (largest / smallest).ln();
                let place = [pose.x / SIZE as f32, pose.y / SIZE as f32, size];
                for (counts, value) in counts.iter_mut().zip(place) {
                    counts[((value.rem_euclid(1.0) * 8.0) as usize).min(7)] += 1;
                }
            }
            // Five standard deviations of a binomial count around 4000 / 8.
            let all_even = counts.iter().flatten().all(|&count| count.abs_diff(SCENES / 8) < 105);
            assert!(all_even, "{name} at frame {time}: {counts:?}");
        }
    }
}

#[test]
fn shapes_are_seen_where_the_pose_says() {
    for clip in 0..20 {
        let mut scene = scene(Motion::Left, clip);
        (scene.shape, scene.colour, scene.background) = (Shape::Disc, [1.0; 3], [0.0; 3]);
        scene.slope = [0.0; 2];
        let at = Pose { x: 30.0, y: 2.0, radius: 5.0 };
        let image = render_frame(&scene, at, &mut stream(clip as u64, 0));
        // The disc crosses the right and the upper edge and comes back in on the other side.
        for (x, y) in [(30, 2), (1, 2), (30, 31), (1, 31)] {
            assert!(image.get_pixel(x, y)[0] > 200, "({x}, {y})");
        }
        assert!(image.get_pixel(16, 16)[0] < 60);
    }
}
