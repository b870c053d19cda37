//! One-step updates of a causal conv1d: `x [B, C]` and `state [B, C, S]` give `y [B, C]` and the shifted
//! state.

/// One decoding problem, run for several steps that each take the state of the step before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateCase {
    /// Unique within its table: lower case words joined by `_`.
    pub name: String,
    /// Batch.
    pub b: usize,
    /// Channels.
    pub c: usize,
    /// Kernel width, at least 1.
    pub w: usize,
    /// State length S, at least `w - 1`. Mamba keeps `w`.
    pub s: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether SiLU is applied.
    pub silu: bool,
    /// Steps to run; more than `s` steps leave nothing of the first state.
    pub steps: usize,
}

/// Every width 1 to 8 (and 16) with states of the least length, Mamba's length and a longer one, channels
/// around a vector and a threadgroup, and all combinations of the flags.
#[must_use]
pub fn update_cases() -> Vec<UpdateCase> {
    let mut cases = Vec::new();
    for w in [1, 2, 3, 4, 5, 6, 7, 8, 16] {
        for (index, s) in [w - 1, w, w + 3].into_iter().enumerate() {
            for c in [[1, 5, 64][(w + index) % 3], [3, 65, 257][(w + index) % 3]] {
                let index_in_table = cases.len();
                let b = 1 + index_in_table % 3;
                let (bias, silu) = (index_in_table % 2 == 0, index_in_table / 2 % 2 == 0);
                let steps = if index_in_table.is_multiple_of(5) { s + 2 } else { 2 };
                let name = format!("update_w{w}_s{s}_b{b}_c{c}");
                cases.push(UpdateCase { name, b, c, w, s, bias, silu, steps });
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn updates_reach_every_option() {
        let cases = update_cases();
        assert!(cases.len() >= 50, "{} cases", cases.len());
        assert_eq!(cases.iter().map(|case| &case.name).collect::<HashSet<_>>().len(), cases.len());
        assert!(cases.iter().all(|case| case.s + 1 >= case.w && case.steps >= 2));
        let require = |what: &str, holds: &dyn Fn(&UpdateCase) -> bool| {
            assert!(cases.iter().any(holds), "no update case has {what}");
        };
        require("an empty state", &|case| case.s == 0);
        require("the shortest state", &|case| case.w == 4 && case.s == 3);
        require("Mamba's state", &|case| case.w == 4 && case.s == 4);
        require("a long state", &|case| case.w == 4 && case.s > 4);
        require("more steps than state", &|case| case.w > 2 && case.steps > case.s);
        for flags in [(false, false), (false, true), (true, false), (true, true)] {
            require("each pair of flags", &|case| (case.bias, case.silu) == flags);
        }
        for b in 1..=3 {
            for c in [1, 3, 5, 64, 65, 257] {
                require("each batch", &|case| case.b == b);
                require("each channel count", &|case| case.c == c);
            }
        }
    }
}
