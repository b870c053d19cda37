//! Clips of moving shapes.
//!
//! The motion shows over time only: positions wrap around the edges and sizes run through a cycle, both from
//! a uniformly random start, so that a single frame of any motion has the same distribution of position,
//! size, shape and colour as a frame of any other.

use std::f32::consts::TAU;

use image::{Rgb, RgbImage};
use rand::Rng;

/// Height and width of a frame in pixels.
pub const SIZE: u32 = 32;

/// Smallest and largest radius of a shape in pixels.
const RADIUS: (f32, f32) = (3.0, 8.0);

/// The motions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motion {
    /// To the left.
    Left,
    /// To the right.
    Right,
    /// Up.
    Up,
    /// Down.
    Down,
    /// Around a point, clockwise.
    Clockwise,
    /// Around a point, counter-clockwise.
    CounterClockwise,
    /// Larger from frame to frame.
    Growing,
    /// Smaller from frame to frame.
    Shrinking,
}

/// Every motion with its name, in the order of names.
pub const MOTIONS: [(&str, Motion); 8] = [
    ("clockwise", Motion::Clockwise),
    ("counter-clockwise", Motion::CounterClockwise),
    ("down", Motion::Down),
    ("growing", Motion::Growing),
    ("left", Motion::Left),
    ("right", Motion::Right),
    ("shrinking", Motion::Shrinking),
    ("up", Motion::Up),
];

#[derive(Clone, Copy, Debug)]
enum Shape {
    Disc,
    Square,
    Triangle,
    Ring,
    Cross,
}

/// Everything random about one clip.
#[derive(Clone, Debug)]
struct Scene {
    motion: Motion,
    shape: Shape,
    /// Turn of the shape in its plane, fixed during the clip.
    tilt: f32,
    /// Start position in pixels, uniform over the frame.
    start: [f32; 2],
    /// Start of the size cycle, uniform over [0, 1).
    phase: f32,
    /// Pixels per frame, or radians per frame of an orbit, or size cycles per frame.
    speed: f32,
    /// Orbit radius in pixels and start angle.
    orbit: (f32, f32),
    colour: [f32; 3],
    background: [f32; 3],
    /// Brightness slope of the background across the frame.
    slope: [f32; 2],
}

/// Where the shape is in one frame; `x` and `y` are not wrapped yet.
#[derive(Clone, Copy, Debug)]
struct Pose {
    x: f32,
    y: f32,
    radius: f32,
}

/// Draws one clip of `frames` frames.
pub fn render_clip(motion: Motion, frames: usize, rng: &mut impl Rng) -> Vec<RgbImage> {
    let scene = random_scene(motion, rng);
    (0..frames).map(|frame| render_frame(&scene, pose(&scene, frame as f32), rng)).collect()
}

fn random_scene(motion: Motion, rng: &mut impl Rng) -> Scene {
    let shape =
        [Shape::Disc, Shape::Square, Shape::Triangle, Shape::Ring, Shape::Cross][rng.random_range(0..5)];
    // Bright shapes of any hue on a dark ground of any hue.
    let background = [0; 3].map(|_| rng.random_range(0.0..0.4));
    let colour = [0; 3].map(|_| rng.random_range(0.5..1.0));
    let speed = match motion {
        Motion::Left | Motion::Right | Motion::Up | Motion::Down => rng.random_range(1.5..3.5),
        Motion::Clockwise | Motion::CounterClockwise => rng.random_range(0.6..1.0),
        Motion::Growing | Motion::Shrinking => rng.random_range(0.08..0.15),
    };
    Scene {
        motion,
        shape,
        tilt: rng.random_range(0.0..TAU),
        start: [rng.random_range(0.0..SIZE as f32), rng.random_range(0.0..SIZE as f32)],
        phase: rng.random(),
        speed,
        orbit: (rng.random_range(4.0..8.0), rng.random_range(0.0..TAU)),
        colour,
        background,
        slope: [rng.random_range(-0.2..0.2), rng.random_range(-0.2..0.2)],
    }
}

/// The pose at `time` (in frames). y points down, so a growing angle turns clockwise on the screen.
fn pose(scene: &Scene, time: f32) -> Pose {
    let travel = scene.speed * time;
    let [mut x, mut y] = scene.start;
    let mut phase = scene.phase;
    match scene.motion {
        Motion::Left => x -= travel,
        Motion::Right => x += travel,
        Motion::Up => y -= travel,
        Motion::Down => y += travel,
        Motion::Clockwise | Motion::CounterClockwise => {
            let turn = if scene.motion == Motion::Clockwise { travel } else { -travel };
            let (radius, start) = scene.orbit;
            x += radius * (start + turn).cos();
            y += radius * (start + turn).sin();
        }
        Motion::Growing => phase += travel,
        Motion::Shrinking => phase -= travel,
    }
    let (smallest, largest) = RADIUS;
    Pose { x, y, radius: smallest * (largest / smallest).powf(phase.rem_euclid(1.0)) }
}

fn render_frame(scene: &Scene, pose: Pose, rng: &mut impl Rng) -> RgbImage {
    let side = SIZE as f32;
    // Offset from the shape's centre to the nearest copy of the pixel on the wrapped frame.
    let wrapped = |delta: f32| (delta + side / 2.0).rem_euclid(side) - side / 2.0;
    let (sin, cos) = scene.tilt.sin_cos();
    RgbImage::from_fn(SIZE, SIZE, |column, row| {
        let (x, y) = (column as f32, row as f32);
        let (dx, dy) = (wrapped(x - pose.x), wrapped(y - pose.y));
        let distance = signed_distance(scene.shape, dx * cos + dy * sin, dy * cos - dx * sin, pose.radius);
        let cover = (0.5 - distance).clamp(0.0, 1.0);
        let light = scene.slope[0] * (x / side - 0.5) + scene.slope[1] * (y / side - 0.5);
        Rgb([0, 1, 2].map(|c| {
            let value = cover * scene.colour[c] + (1.0 - cover) * (scene.background[c] + light);
            let noise = rng.random_range(-0.06..0.06);
            ((value + noise).clamp(0.0, 1.0) * 255.0).round() as u8
        }))
    })
}

/// Distance in pixels from the outline of a shape around the origin, negative inside.
fn signed_distance(shape: Shape, x: f32, y: f32, radius: f32) -> f32 {
    let bar = |half: [f32; 2]| (x.abs() - half[0]).max(y.abs() - half[1]);
    match shape {
        Shape::Disc => x.hypot(y) - radius,
        Shape::Square => bar([0.85 * radius; 2]),
        Shape::Triangle => {
            let slanted = x.abs() * 0.866 + y * 0.5;
            slanted.max(-y) - 0.6 * radius
        }
        Shape::Ring => (x.hypot(y) - 0.75 * radius).abs() - 0.3 * radius,
        Shape::Cross => bar([radius, 0.35 * radius]).min(bar([0.35 * radius, radius])),
    }
}

#[cfg(test)]
#[path = "shapes_tests.rs"]
mod tests;
