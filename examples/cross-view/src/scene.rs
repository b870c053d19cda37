//! Generated scenes, each photographed from two places.
//!
//! A scene is a textured wall with textured cards before it, some square and some round, at random distances
//! and tilts. The cameras stand in places of their own and look near the middle of the scene, so that the
//! views are shifted and a little turned, near cards shift against far ones, and each view shows something
//! that the other hides.

use std::f32::consts::TAU;
use std::path::Path;

use anyhow::{Context, Result};
use example_common::random::stream;
use example_common::run_folder;
use image::{Rgb, RgbImage};
use indicatif::ProgressBar;
use rand::Rng;

/// Number of scenes.
pub(crate) const SCENES: usize = 1000;
/// Height and width of a view in pixels.
pub(crate) const SIZE: u32 = 64;
/// Seed of the scenes; it has no option, so that everyone's copy is the same.
const SEED: u64 = 20_250_601;
/// Rays per pixel, in each direction.
const RAYS: u32 = 2;

type Vector = [f32; 3];

fn add(a: Vector, b: Vector, factor: f32) -> Vector {
    std::array::from_fn(|i| a[i] + factor * b[i])
}

fn dot(a: Vector, b: Vector) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn cross(a: Vector, b: Vector) -> Vector {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn unit(a: Vector) -> Vector {
    a.map(|x| x / dot(a, a).sqrt())
}

/// Right, down and forward: y points down, as in pictures. `roll` turns the first two.
#[derive(Clone, Copy, Debug)]
struct Frame {
    right: Vector,
    down: Vector,
    forward: Vector,
}

impl Frame {
    fn facing(forward: Vector, roll: f32) -> Self {
        let forward = unit(forward);
        let level = unit(cross([0.0, 1.0, 0.0], forward));
        let down = cross(forward, level);
        let (sin, cos) = roll.sin_cos();
        let right = add(level.map(|x| x * cos), down, sin);
        Self { right, down: cross(forward, right), forward }
    }
}

/// A colour for every point of a plane: two colours in waves, soft checks or soft stripes, and a slow slope
/// of brightness.
#[derive(Clone, Copy, Debug)]
struct Texture {
    colours: [Vector; 2],
    /// Turn of the pattern, and its period.
    turn: f32,
    period: f32,
    phase: f32,
    kind: u8,
    slope: [f32; 2],
}

impl Texture {
    fn random(rng: &mut impl Rng, period: std::ops::Range<f32>) -> Self {
        Self {
            colours: [[0; 3].map(|_| rng.random_range(0.1..0.9)), [0; 3].map(|_| rng.random_range(0.1..0.9))],
            turn: rng.random_range(0.0..TAU),
            period: rng.random_range(period),
            phase: rng.random_range(0.0..TAU),
            kind: rng.random_range(0..3),
            slope: [0; 2].map(|_| rng.random_range(-0.1..0.1)),
        }
    }

    fn colour(&self, x: f32, y: f32) -> Vector {
        let (sin, cos) = self.turn.sin_cos();
        let scale = TAU / self.period;
        let (u, v) = (scale * (cos * x + sin * y) + self.phase, scale * (cos * y - sin * x));
        let mix = match self.kind {
            0 => 0.5 + 0.25 * (u.sin() + (v + 0.5 * u.sin()).sin()),
            1 => (0.5 + 1.5 * u.sin() * v.sin()).clamp(0.0, 1.0),
            _ => (0.5 + u.sin()).clamp(0.0, 1.0),
        };
        let light = 1.0 + self.slope[0] * x + self.slope[1] * y;
        std::array::from_fn(|i| light * (self.colours[0][i] * (1.0 - mix) + self.colours[1][i] * mix))
    }
}

/// A flat piece of the scene.
#[derive(Clone, Copy, Debug)]
struct Card {
    centre: Vector,
    frame: Frame,
    /// Half its width and height.
    half: [f32; 2],
    round: bool,
    texture: Texture,
}

impl Card {
    /// Distance along the ray and colour, where the ray meets the card.
    fn hit(&self, origin: Vector, direction: Vector) -> Option<(f32, Vector)> {
        let towards = dot(direction, self.frame.forward);
        let distance = dot(add(self.centre, origin, -1.0), self.frame.forward) / towards;
        let point = add(add(origin, direction, distance), self.centre, -1.0);
        let (x, y) = (dot(point, self.frame.right), dot(point, self.frame.down));
        let (u, v) = (x / self.half[0], y / self.half[1]);
        let inside = if self.round { u.hypot(v) <= 1.0 } else { u.abs().max(v.abs()) <= 1.0 };
        (distance > 0.0 && inside).then(|| (distance, self.texture.colour(x, y)))
    }
}

fn random_scene(rng: &mut impl Rng) -> Vec<Card> {
    let wall = Card {
        centre: [0.0, 0.0, rng.random_range(7.0..8.0)],
        frame: Frame::facing([rng.random_range(-0.3..0.3), rng.random_range(-0.2..0.2), 1.0], 0.0),
        half: [40.0; 2],
        round: false,
        texture: Texture::random(rng, 3.0..6.0),
    };
    let mut cards = vec![wall];
    for _ in 0..rng.random_range(4..8) {
        let depth = rng.random_range(3.5..6.5);
        cards.push(Card {
            centre: [rng.random_range(-0.4..0.4) * depth, rng.random_range(-0.4..0.4) * depth, depth],
            frame: Frame::facing(
                [rng.random_range(-0.6..0.6), rng.random_range(-0.6..0.6), 1.0],
                rng.random_range(0.0..TAU),
            ),
            half: [0; 2].map(|_| rng.random_range(0.5..1.4)),
            round: rng.random_bool(0.4),
            texture: Texture::random(rng, 1.2..3.0),
        });
    }
    cards
}

/// A camera somewhere before the scene.
fn random_camera(rng: &mut impl Rng) -> (Vector, Frame) {
    let place = [rng.random_range(-0.7..0.7), rng.random_range(-0.4..0.4), rng.random_range(-0.3..0.3)];
    let aim = [rng.random_range(-0.25..0.25), rng.random_range(-0.25..0.25), 5.0];
    (place, Frame::facing(add(aim, place, -1.0), rng.random_range(-0.08..0.08)))
}

fn photograph(cards: &[Card], (origin, frame): (Vector, Frame)) -> RgbImage {
    // Half the picture's width at distance 1: a field of view of 56 degrees.
    const HALF: f32 = 0.53;
    let side = SIZE * RAYS;
    let ray = |x: u32, y: u32| {
        let [right, down] = [x, y].map(|at| HALF * (2.0 * (at as f32 + 0.5) / side as f32 - 1.0));
        let direction = add(add(frame.forward, frame.right, right), frame.down, down);
        let hits = cards.iter().filter_map(|card| card.hit(origin, direction));
        hits.min_by(|a, b| a.0.total_cmp(&b.0)).map_or([0.0; 3], |hit| hit.1)
    };
    RgbImage::from_fn(SIZE, SIZE, |x, y| {
        let mut sum = [0.0; 3];
        for sub in 0..RAYS * RAYS {
            sum = add(sum, ray(x * RAYS + sub % RAYS, y * RAYS + sub / RAYS), 1.0);
        }
        Rgb(sum.map(|value| (value / (RAYS * RAYS) as f32 * 255.0).round() as u8))
    })
}

/// The two views of one scene.
fn views(number: usize) -> [RgbImage; 2] {
    // One stream per scene: the result does not depend on the order in which threads work.
    let mut rng = stream(SEED, number);
    let scene = random_scene(&mut rng);
    [0; 2].map(|_| photograph(&scene, random_camera(&mut rng)))
}

/// Writes the scenes to `dir` as `<number>/{1,2}.png`, or leaves them as they are where they are there
/// already.
pub(crate) fn make_images(dir: &Path, scenes: usize) -> Result<()> {
    use rayon::prelude::*;
    let about = format!(
        "Generated scenes, written by cross-view (seed {SEED}).\n\
         {scenes} scenes, each seen by two cameras: <number>/1.png and 2.png, {SIZE} x {SIZE} pixels.\n"
    );
    let write = |root: &Path| {
        let bar = ProgressBar::new(scenes as u64).with_message("writing scenes");
        (0..scenes).into_par_iter().try_for_each(|number| {
            let folder = root.join(format!("{number:04}"));
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("{} cannot be made", folder.display()))?;
            for (name, view) in ["1.png", "2.png"].into_iter().zip(views(number)) {
                let file = folder.join(name);
                view.save(&file).with_context(|| format!("{} cannot be written", file.display()))?;
            }
            bar.inc(1);
            anyhow::Ok(())
        })?;
        bar.finish_and_clear();
        Ok(())
    };
    if run_folder::generate(dir, &about, write)? {
        println!("Wrote {scenes} scenes of two views each to {}.", dir.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_orthonormal_and_right_handed() {
        for (forward, roll) in [([0.0, 0.0, 1.0], 0.0), ([0.3, -0.5, 0.8], 1.0)] {
            let Frame { right, down, forward } = Frame::facing(forward, roll);
            for (a, b) in [(right, down), (down, forward), (forward, right)] {
                assert!(dot(a, b).abs() < 1e-6 && (dot(a, a) - 1.0).abs() < 1e-6);
            }
            assert!((dot(cross(right, down), forward) - 1.0).abs() < 1e-6);
        }
        // Without roll, right is right and down is down.
        let Frame { right, down, .. } = Frame::facing([0.0, 0.0, 1.0], 0.0);
        assert_eq!((right, down), ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]));
    }

    #[test]
    fn near_things_shift_more_than_far_ones() {
        let texture = |brightness: f32| Texture {
            colours: [[brightness; 3]; 2],
            turn: 0.0,
            period: 1.0,
            phase: 0.0,
            kind: 0,
            slope: [0.0; 2],
        };
        let card = |depth: f32, brightness| Card {
            centre: [0.0, 0.0, depth],
            frame: Frame::facing([0.0, 0.0, 1.0], 0.0),
            half: [0.1 * depth; 2],
            round: false,
            texture: texture(brightness),
        };
        // The column of the card's middle, seen from a place to the left, looking straight ahead.
        let column = |depth| {
            let camera = ([-0.5, 0.0, 0.0], Frame::facing([0.0, 0.0, 1.0], 0.0));
            let view = photograph(&[card(depth, 1.0)], camera);
            let lit: Vec<u32> = (0..SIZE).filter(|&x| view.get_pixel(x, SIZE / 2)[0] > 127).collect();
            lit.iter().sum::<u32>() as f32 / lit.len() as f32
        };
        let (near, far) = (column(3.0), column(7.0));
        // 0.5 / depth of the half width 0.53, in pixels from the middle.
        let expected = |depth: f32| 31.5 + 32.0 * 0.5 / depth / 0.53;
        assert!((near - expected(3.0)).abs() < 0.6, "{near}");
        assert!((far - expected(7.0)).abs() < 0.6, "{far}");
        // The nearer one hides the farther one.
        let view =
            photograph(&[card(3.0, 0.2), card(7.0, 1.0)], ([0.0; 3], Frame::facing([0.0, 0.0, 1.0], 0.0)));
        assert_eq!(view.get_pixel(SIZE / 2, SIZE / 2)[0], 51);
    }

    #[test]
    fn the_two_views_show_one_scene() {
        let difference = |a: &RgbImage, b: &RgbImage| {
            let pairs = a.as_raw().iter().zip(b.as_raw());
            pairs.map(|(&a, &b)| f64::from(a.abs_diff(b))).sum::<f64>() / a.as_raw().len() as f64
        };
        let (mut same, mut other) = (0.0, 0.0);
        for number in 0..20 {
            let [first, second] = views(number);
            assert!(difference(&first, &second) > 1.0, "scene {number}: the views are equal");
            same += difference(&first, &second);
            other += difference(&first, &views(number + 1)[1]);
        }
        assert!(same < 0.75 * other, "{same} {other}");
    }
}
