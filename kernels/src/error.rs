//! Errors: one sentence with the offending numbers, before anything is launched. What a caller may want to
//! act on has fields, too.

use crate::dtype::FloatType;

/// Why a call was refused. The `Display` text is one sentence that starts with the op's name and holds the
/// offending numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvError {
    /// The arguments contradict each other or the op's definition, in another way than those below.
    #[error("{0}")]
    Invalid(String),
    /// The arguments are sound, but this device, dtype or forced algorithm cannot serve them.
    #[error("{0}")]
    Unsupported(String),
    /// A size passes what the index types can address.
    #[error("{0}")]
    TooLarge(String),
    /// An operand's shape does not fit the other operands and the options.
    #[error("{message}")]
    Shape {
        /// The operand's name.
        operand: String,
        /// The shape that fits.
        expected: Vec<usize>,
        /// Its shape.
        got: Vec<usize>,
        /// The sentence.
        message: String,
    },
    /// An operand is of another dtype than the op reads there.
    #[error("{message}")]
    Dtype {
        /// The operand's name.
        operand: String,
        /// The dtypes that fit, by name.
        expected: Vec<&'static str>,
        /// Its dtype.
        got: &'static str,
        /// The sentence.
        message: String,
    },
    /// An option or extent is below its least or above its largest value.
    #[error("{message}")]
    OutOfRange {
        /// Its name.
        name: String,
        /// The least value.
        least: usize,
        /// The largest value.
        most: usize,
        /// The value given.
        got: usize,
        /// The sentence.
        message: String,
    },
    /// The device cannot hold tensors of a storage type.
    #[error("{message}")]
    UnservedDtype {
        /// The storage type.
        dtype: FloatType,
        /// Those that the device serves.
        served: Vec<FloatType>,
        /// The sentence.
        message: String,
    },
    /// The call needs more of something than the device has.
    #[error("{message}")]
    DeviceLimit {
        /// Of what.
        limit: DeviceLimit,
        /// How much is needed.
        needed: u64,
        /// How much there is.
        available: u64,
        /// The sentence.
        message: String,
    },
}

/// What a device has only so much of; see [`Limits`](crate::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceLimit {
    /// Bytes of threadgroup memory.
    SharedBytes,
    /// Threads per threadgroup.
    Threads,
    /// Buffers that a kernel can bind.
    Bindings,
    /// Bytes of a buffer.
    BufferBytes,
    /// Iterations of a thread's loops.
    LoopIterations,
    /// Elements that an index reaches.
    IndexedElements,
    /// Bytes of workspace.
    WorkspaceBytes,
}

impl ConvError {
    /// The sentence, without its class and fields.
    pub fn message(&self) -> &str {
        match self {
            Self::Invalid(message) | Self::Unsupported(message) | Self::TooLarge(message) => message,
            Self::Shape { message, .. }
            | Self::Dtype { message, .. }
            | Self::OutOfRange { message, .. }
            | Self::UnservedDtype { message, .. }
            | Self::DeviceLimit { message, .. } => message,
        }
    }

    /// The same error with another sentence.
    #[must_use]
    pub fn map_message(mut self, map: impl FnOnce(&str) -> String) -> Self {
        let (Self::Invalid(message)
        | Self::Unsupported(message)
        | Self::TooLarge(message)
        | Self::Shape { message, .. }
        | Self::Dtype { message, .. }
        | Self::OutOfRange { message, .. }
        | Self::UnservedDtype { message, .. }
        | Self::DeviceLimit { message, .. }) = &mut self;
        *message = map(message);
        self
    }

    /// [`Shape`](Self::Shape).
    pub fn shape(operand: &str, expected: &[usize], got: &[usize], message: String) -> Self {
        Self::Shape { operand: operand.into(), expected: expected.into(), got: got.into(), message }
    }

    /// [`Dtype`](Self::Dtype).
    pub fn dtype(operand: &str, expected: &[&'static str], got: &'static str, message: String) -> Self {
        Self::Dtype { operand: operand.into(), expected: expected.into(), got, message }
    }

    /// [`OutOfRange`](Self::OutOfRange) for a value that is not in `range`.
    pub fn out_of_range(
        name: &str,
        range: std::ops::RangeInclusive<usize>,
        got: usize,
        message: String,
    ) -> Self {
        Self::OutOfRange { name: name.into(), least: *range.start(), most: *range.end(), got, message }
    }

    /// [`DeviceLimit`](Self::DeviceLimit).
    pub fn device_limit(limit: DeviceLimit, needed: u64, available: u64, message: String) -> Self {
        Self::DeviceLimit { limit, needed, available, message }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;
    use crate::conv3d::{Algorithm, Conv3dProblem, Pass, Window, plan};

    const X: [usize; 5] = [1, 4, 2, 8, 8];
    const WEIGHT: [usize; 5] = [6, 4, 1, 3, 3];

    fn problem(weight: [usize; 5], bias: Option<usize>, window: Window) -> Result<Conv3dProblem, ConvError> {
        Conv3dProblem::new(X, weight, bias, window, FloatType::F16)
    }

    #[test]
    fn what_was_expected_is_in_fields_next_to_the_sentence() {
        let error = problem([6, 3, 1, 3, 3], None, Window::default()).unwrap_err();
        let ConvError::Shape { operand, expected, got, message } = &error else { panic!("{error:?}") };
        assert_eq!((&operand[..], &expected[..], &got[..]), ("weight", &WEIGHT[..], &[6, 3, 1, 3, 3][..]));
        assert_eq!(message, &error.to_string());
        let error = problem(WEIGHT, Some(5), Window::default()).unwrap_err();
        assert!(matches!(&error, ConvError::Shape { expected, got, .. } if expected == &[6] && got == &[5]));
        let renamed = error.map_message(|sentence| format!("an op: {sentence}"));
        assert!(renamed.message().starts_with("an op: conv3d: the bias has 5 elements"), "{renamed}");
        assert!(matches!(renamed, ConvError::Shape { .. }));

        let error = problem(WEIGHT, None, Window { stride: [1, 0, 1], ..Window::default() }).unwrap_err();
        assert!(matches!(error, ConvError::OutOfRange { least: 1, got: 0, .. }), "{error:?}");
    }

    #[test]
    fn what_the_device_lacks_is_in_fields_next_to_the_sentence() {
        let problem = problem(WEIGHT, None, Window::default()).unwrap();
        let refused = |limits: &Limits| plan(&problem, Pass::Forward, Algorithm::Direct, limits).unwrap_err();
        let error = refused(&Limits { dtypes: vec![FloatType::F32], ..Limits::apple_m1() });
        let ConvError::UnservedDtype { dtype, served, .. } = &error else { panic!("{error:?}") };
        assert_eq!((*dtype, &served[..]), (FloatType::F16, &[FloatType::F32][..]));
        let error = refused(&Limits { units_per_cube: 64, ..Limits::apple_m1() });
        let expected = (DeviceLimit::Threads, 256, 64);
        let ConvError::DeviceLimit { limit, needed, available, .. } = error else { panic!("{error:?}") };
        assert_eq!((limit, needed, available), expected);
    }
}
