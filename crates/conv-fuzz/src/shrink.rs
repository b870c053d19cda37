//! Shrinks a failing case.

use crate::text::{Case, Op};

/// The smallest failing case reachable from the failing `case` in at most `trials` trials.
pub fn shrink(case: &Case, trials: usize, mut fails: impl FnMut(&Case) -> bool) -> Case {
    let mut smallest = case.clone();
    let mut left = trials;
    loop {
        let found = candidates(&smallest).into_iter().find(|candidate| {
            if left == 0 {
                return false;
            }
            left -= 1;
            fails(candidate)
        });
        match found {
            Some(found) => smallest = found,
            None => return smallest,
        }
    }
}

/// Distance from the simplest case: every candidate is nearer.
fn distance(case: &Case) -> u64 {
    let fields = case.op.fields().iter().zip(&case.values);
    fields
        .flat_map(|(field, numbers)| field.simplest.iter().zip(numbers))
        .map(|(simplest, number)| simplest.abs_diff(*number))
        .sum()
}

/// Simpler cases, the largest steps first.
fn candidates(case: &Case) -> Vec<Case> {
    let mut found: Vec<Case> = Vec::new();
    let mut add = |values: Vec<Vec<i64>>| {
        let candidate = Case { values, ..case.clone() };
        if distance(&candidate) < distance(case) && !found.contains(&candidate) {
            found.push(candidate);
        }
    };
    let fields = case.op.fields();
    let positions: Vec<(usize, usize)> = (0..fields.len())
        .flat_map(|field| (0..fields[field].simplest.len()).map(move |index| (field, index)))
        .filter(|(field, index)| case.values[*field][*index] != fields[*field].simplest[*index])
        .collect();
    let target = |(field, index): (usize, usize)| fields[field].simplest[index];
    let with = |changes: &[((usize, usize), i64)]| {
        let mut values = case.values.clone();
        for ((field, index), number) in changes {
            values[*field][*index] = *number;
        }
        values
    };
    let step = |position: (usize, usize), divisor: i64| {
        let (from, to) = (case.values[position.0][position.1], target(position));
        let words = !fields[position.0].words.is_empty();
        // Words have no midpoint.
        if words { to } else { from - (from - to) / divisor }
    };
    let one = |position: (usize, usize)| {
        let (from, to) = (case.values[position.0][position.1], target(position));
        from - (from - to).signum()
    };
    for (field, numbers) in case.values.iter().enumerate() {
        if numbers != fields[field].simplest {
            let mut values = case.values.clone();
            values[field] = fields[field].simplest.to_vec();
            add(values);
        }
    }
    for &position in &positions {
        add(with(&[(position, target(position))]));
    }
    if case.op == Op::Conv3d {
        // Channels and groups keep their ratios.
        let numbers = [("x", 1), ("o", 0), ("groups", 0)].map(|(name, index)| {
            let field = fields.iter().position(|field| field.name == name).unwrap_or(0);
            (field, index)
        });
        for divisor in [2, 3, 5, 7, 11, 31] {
            if numbers.iter().all(|position| case.values[position.0][position.1] % divisor == 0) {
                let changes =
                    numbers.map(|position| (position, case.values[position.0][position.1] / divisor));
                add(with(&changes));
            }
        }
    }
    // Equal numbers change at once: depthwise channels and groups, padding on both sides.
    let alike = |position: &(usize, usize)| -> Vec<(usize, usize)> {
        let number = case.values[position.0][position.1];
        let plain = |other: &&(usize, usize)| fields[other.0].words.is_empty();
        positions
            .iter()
            .filter(plain)
            .filter(|other| case.values[other.0][other.1] == number)
            .copied()
            .collect()
    };
    for divisor in [2, 4] {
        for position in &positions {
            add(with(&[(*position, step(*position, divisor))]));
            let changes: Vec<_> =
                alike(position).into_iter().map(|other| (other, step(other, divisor))).collect();
            add(with(&changes));
        }
    }
    for position in &positions {
        add(with(&[(*position, one(*position))]));
        let changes: Vec<_> = alike(position).into_iter().map(|other| (other, one(other))).collect();
        add(with(&changes));
    }
    // Pairs: a filter with its padding, an input with its stride.
    for (index, position) in positions.iter().enumerate() {
        for other in &positions[..index] {
            if fields[position.0].words.is_empty() && fields[other.0].words.is_empty() {
                add(with(&[(*position, one(*position)), (*other, one(*other))]));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;

    /// Random cases shrink to the one smallest case that a predicate admits.
    #[test]
    fn shrinking_reaches_the_minimum() {
        let fails = |case: &Case| {
            let (x, k) = (case.extents::<5>("x"), case.extents::<3>("k"));
            case.is("replicate") && k[2] > 10 && x[1] >= 3 && x[1] % case.extent("groups") == 0
        };
        let mut shrunk = 0;
        for n in 0..20_000 {
            let case = generate::case_of(9, n, &[Op::Conv3d]);
            if fails(&case) {
                let small = shrink(&case, 10_000, fails);
                let line = small.to_string();
                let line = line.split(" plan=").next().unwrap_or_default();
                assert_eq!(line, "conv3d x=1,3,1,1,1 k=1,1,11 replicate=1", "{case}");
                shrunk += 1;
            }
        }
        assert!(shrunk > 20, "{shrunk} cases");
    }

    /// Numbers that only make sense together get smaller together.
    #[test]
    fn depthwise_channels_shrink_together() {
        let fails = |case: &Case| {
            let (c, groups, o) = (case.extents::<5>("x")[1], case.extent("groups"), case.extent("o"));
            c == groups && c == o && c > 4
        };
        let case = Case::parse("conv3d x=3,33,2,9,9 o=33 groups=33 k=3,3,3 act=silu bias=1").expect("a case");
        assert_eq!(shrink(&case, 1000, fails).to_string(), "conv3d x=1,5,1,1,1 o=5 groups=5");
    }

    #[test]
    fn trials_are_bounded() {
        let case = Case::parse("conv3d x=3,33,2,9,9 o=33").expect("a case");
        let mut trials = 0;
        shrink(&case, 5, |_| {
            trials += 1;
            false
        });
        assert_eq!(trials, 5);
    }
}
