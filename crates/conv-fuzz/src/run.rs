//! The loop over cases, what it reports, and the named regressions.

use crate::device::Device;
use crate::outcome::{Outcome, PANIC, caught};
use crate::shrink::shrink;
use crate::text::{Case, Op};
use crate::{causal_conv1d, conv3d, decoding, generate, rope};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What to run, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of the random cases.
    pub seed: u64,
    /// Number of the first case.
    pub first: u64,
    /// Largest number of cases.
    pub problems: u64,
    /// Time limit, shrinking not counted.
    pub time: Duration,
    /// The ops to draw from.
    pub ops: Vec<Op>,
    /// Prints every case before it is run.
    pub verbose: bool,
}

/// A shrunk failure.
#[derive(Clone, Debug)]
pub struct Found {
    /// The number of the random case.
    pub number: u64,
    /// The seconds after which it was found.
    pub seconds: f64,
    /// The smallest case that fails in this way.
    pub case: Case,
    /// Expected and actual result of the smallest case.
    pub message: String,
}

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases that were run.
    pub problems: u64,
    /// Cases that are not problems of this device.
    pub skipped: u64,
    /// Passed comparisons by op, pass or result, and plan.
    pub covered: BTreeMap<(&'static str, &'static str, String), u64>,
    /// Different failures.
    pub found: Vec<Found>,
    /// Further failures of the same kinds.
    pub repeats: u64,
    /// Seconds, shrinking not counted.
    pub seconds: f64,
}

static QUIET: AtomicBool = AtomicBool::new(false);

/// Runs a case; a panic is a failure and prints nothing.
pub fn run_case(device: &Device, case: &Case) -> Outcome {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.load(Ordering::Relaxed) {
                hook(info);
            }
        }));
    });
    QUIET.store(true, Ordering::Relaxed);
    let outcome = caught(|| match case.op {
        Op::Conv3d => conv3d::run(device, case),
        Op::CausalConv1d => causal_conv1d::run(device, case),
        Op::Update => decoding::run_update(device, case),
        Op::Packed => decoding::run_packed(device, case),
        Op::Rope => rope::run(device, case),
    });
    QUIET.store(false, Ordering::Relaxed);
    outcome.unwrap_or_else(|panic| Outcome::failed(case, PANIC, panic))
}

/// Runs a case of which something must be compared: the number of comparisons, 0 only where the case names a
/// plan on matrix units that the device lacks.
///
/// # Errors
/// A failure; nothing to compare, as where the case names a plan that does not exist. With the case's line.
pub fn run_named(device: &Device, case: &Case) -> Result<usize, String> {
    match run_case(device, case) {
        Outcome::Failed(failure) => Err(format!("{}: {}\n  {}", failure.kind, failure.message, failure.case)),
        Outcome::Passed(checks) if !checks.is_empty() => Ok(checks.len()),
        _ if case.op == Op::Conv3d
            && device.limits.matrices.is_empty()
            && conv3d::needs_matrix_units(case) =>
        {
            Ok(0)
        }
        Outcome::Passed(_) => Err(format!("nothing was compared: no plan of this name serves it\n  {case}")),
        Outcome::Skipped(reason) => Err(format!("nothing was compared: {reason}\n  {case}")),
    }
}

/// Runs random cases.
pub fn fuzz(device: &Device, options: &Options) -> Report {
    let mut report = Report::default();
    let mut seen = HashSet::new();
    let mut shrinking = Duration::ZERO;
    let start = Instant::now();
    let elapsed = |shrinking: Duration| start.elapsed().saturating_sub(shrinking);
    for number in options.first..options.first.saturating_add(options.problems) {
        if elapsed(shrinking) >= options.time {
            break;
        }
        let case = generate::case_of(options.seed, number, &options.ops);
        if options.verbose {
            println!("{number}: {case}");
        }
        match run_case(device, &case) {
            Outcome::Skipped(_) => report.skipped += 1,
            Outcome::Passed(checks) => {
                report.problems += 1;
                for (pass, plan) in checks {
                    *report.covered.entry((case.op.name(), pass, plan)).or_default() += 1;
                }
            }
            Outcome::Failed(failure) => {
                report.problems += 1;
                let class = failure.case.op.fields().iter().any(|field| field.name == "limits");
                let class = if class { failure.case.word("limits") } else { "" };
                let subject = failure.message.split(':').next().unwrap_or_default();
                let subject: String =
                    subject.chars().filter(|letter| !letter.is_ascii_digit() && *letter != 'x').collect();
                if !seen.insert((case.op, failure.kind, class, subject)) {
                    report.repeats += 1;
                    continue;
                }
                let seconds = elapsed(shrinking).as_secs_f64();
                let begin = Instant::now();
                let (case, message) = smallest(device, &failure.case, failure.kind, &failure.message);
                shrinking += begin.elapsed();
                println!(
                    "FAILED after {seconds:.1} s, case {number}: {}\n  {case}\n  {message}",
                    failure.kind
                );
                report.found.push(Found { number, seconds, case, message });
            }
        }
    }
    report.seconds = elapsed(shrinking).as_secs_f64();
    report
}

/// Limits of shrinking a failing case.
const TRIALS: usize = 600;
const SHRINKING: Duration = Duration::from_secs(30);

/// The smallest case that fails in the same way, and its message.
fn smallest(device: &Device, case: &Case, kind: &'static str, message: &str) -> (Case, String) {
    let start = Instant::now();
    let failing = |case: &Case| match run_case(device, case) {
        Outcome::Failed(failure) if failure.kind == kind => Some(failure),
        _ => None,
    };
    let mut case = case.clone();
    // Name the automatically chosen plan if the case fails with it in the same way.
    if case.plan == "auto" {
        let plan = message.split([':', ' ']).next().unwrap_or_default().to_string();
        let named = Case { plan, ..case.clone() };
        if failing(&named).is_some() {
            case = named;
        }
    }
    let small = shrink(&case, TRIALS, |case| start.elapsed() < SHRINKING && failing(case).is_some());
    let message = failing(&small).map_or_else(|| format!("{message} (not again)"), |failure| failure.message);
    (small, message)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checks: u64 = self.covered.values().sum();
        for ((op, pass, plan), count) in &self.covered {
            writeln!(f, "{count:>7}  {op} {pass} {plan}")?;
        }
        for found in &self.found {
            writeln!(
                f,
                "FAILED (case {}, {:.1} s): {}\n  {}",
                found.number, found.seconds, found.case, found.message
            )?;
        }
        write!(
            f,
            "{} problems in {:.1} s ({:.1} a second), {checks} checks, {} plans and passes, {} skipped, {} different failures, {} \
             more like them",
            self.problems,
            self.seconds,
            self.problems as f64 / self.seconds.max(1e-9),
            self.covered.len(),
            self.skipped,
            self.found.len(),
            self.repeats
        )
    }
}

/// The named regressions: `name: line`, one a row; rows that begin with `#` are comments.
///
/// # Errors
/// The first row that is not understood.
pub fn regressions() -> Result<Vec<(String, Case)>, String> {
    let rows = include_str!("../regressions.txt").lines().map(str::trim);
    rows.filter(|row| !row.is_empty() && !row.starts_with('#'))
        .map(|row| {
            let (name, line) = row.split_once(": ").ok_or_else(|| format!("`{row}` has no name"))?;
            Ok((name.to_string(), Case::parse(line).map_err(|error| format!("{name}: {error}"))?))
        })
        .collect()
}
