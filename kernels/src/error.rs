//! Errors: one sentence with the offending numbers, before anything is launched.

/// Why a call was refused. The `Display` text is one sentence that starts with the op's name and holds the
/// offending numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvError {
    /// The arguments contradict each other or the op's definition (shapes, strides, groups, options).
    #[error("{0}")]
    Invalid(String),
    /// The arguments are sound, but this device, dtype or forced algorithm cannot serve them.
    #[error("{0}")]
    Unsupported(String),
    /// A size passes what the device or the index type can address.
    #[error("{0}")]
    TooLarge(String),
}

impl ConvError {
    /// The sentence, without its class.
    pub fn message(&self) -> &str {
        match self {
            Self::Invalid(text) | Self::Unsupported(text) | Self::TooLarge(text) => text,
        }
    }
}

/// `return Err(ConvError::Invalid(format!(..)))`, the most frequent line of every `validate`.
macro_rules! invalid {
    ($($text:tt)*) => { return Err($crate::ConvError::Invalid(format!($($text)*))) };
}

/// As [`invalid`], for requests that the device or a forced algorithm cannot serve.
macro_rules! unsupported {
    ($($text:tt)*) => { return Err($crate::ConvError::Unsupported(format!($($text)*))) };
}

pub(crate) use {invalid, unsupported};
