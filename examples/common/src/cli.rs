//! Options that examples share, bounds of command-line numbers, and how a time is told.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::TypedValueParser;

use crate::device::DeviceChoice;

/// Options of every example that trains.
#[derive(Args, Clone, Copy, Debug)]
pub struct RunOptions {
    /// What to run on
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto, help_heading = "Run")]
    pub device: DeviceChoice,
    /// Replace the run in the artifacts folder
    #[arg(long, help_heading = "Run")]
    pub overwrite: bool,
    /// Plain text in place of the terminal interface
    #[arg(long, help_heading = "Run")]
    pub plain: bool,
}

/// A number within bounds, refused by clap with the option's name otherwise.
pub fn count(least: u64, most: u64) -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u64).range(least..=most).map(|number| number as usize)
}

/// A learning rate that Burn's schedule accepts.
///
/// # Errors
/// When the text is no number above 0 and at most 1.
pub fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= 1.0 => Ok(rate),
        _ => Err("it must be a number above 0 and at most 1".to_owned()),
    }
}

/// The exit code of a program; an error is printed in one line.
pub fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `3 min 41 s`
#[must_use]
pub fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 { format!("{seconds} s") } else { format!("{} min {} s", seconds / 60, seconds % 60) }
}

/// What training took: `After 8 epochs in 2 min 1 s on the CPU (Flex, 2 threads); 197997 parameters.`
#[must_use]
pub fn trained(epochs: usize, time: Duration, device: &str, parameters: usize) -> String {
    let (s, time) = (plural(epochs), minutes(time));
    format!("After {epochs} epoch{s} in {time} on {device}; {parameters} parameters.")
}

/// `s` unless there is one of it.
#[must_use]
pub fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_told_in_minutes() {
        assert_eq!(minutes(Duration::from_secs(59)), "59 s");
        assert_eq!(minutes(Duration::from_secs(221)), "3 min 41 s");
    }

    #[test]
    fn training_is_told_in_a_sentence() {
        let told = trained(1, Duration::from_secs(2), "the CPU", 7);
        assert_eq!(told, "After 1 epoch in 2 s on the CPU; 7 parameters.");
    }

    #[test]
    fn a_rate_is_above_0_and_at_most_1() {
        assert_eq!((rate("0.5"), rate("1")), (Ok(0.5), Ok(1.0)));
        for wrong in ["0", "1.1", "-1", "nan", "much"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
