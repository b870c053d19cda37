//! One axis of a convolution: output extent and validation, by PyTorch's and Burn's formula, checked against
//! overflow.

use crate::error::{ConvError, invalid};

/// One spatial axis of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AxisGeometry {
    /// Input extent.
    pub input: usize,
    /// Kernel taps.
    pub kernel: usize,
    /// Distance between neighbouring windows.
    pub stride: usize,
    /// Distance between neighbouring taps.
    pub dilation: usize,
    /// Padding before the first and after the last element.
    pub padding: (usize, usize),
}

impl AxisGeometry {
    /// Extent from the first to the last tap: `dilation * (kernel - 1) + 1`.
    pub fn span(&self) -> usize {
        self.dilation * (self.kernel - 1) + 1
    }

    /// Dilation, or 1 if there is a single tap, whose dilation has no effect.
    pub(crate) fn tap_step(&self) -> usize {
        if self.kernel > 1 { self.dilation } else { 1 }
    }

    /// Number of windows: `(input + begin + end - dilation * (kernel - 1) - 1) / stride + 1`.
    pub fn output(&self) -> usize {
        (self.input + self.padding.0 + self.padding.1 - self.span()) / self.stride + 1
    }

    /// Refuses zero strides, kernels and dilations, windows larger than the padded input, and coordinates
    /// beyond 2^31 - 1.
    pub fn validate(&self, op: &str, axis: &str) -> Result<(), ConvError> {
        let Self { input, kernel, stride, dilation, padding: (begin, end) } = *self;
        let limit = i32::MAX as usize;
        for (what, value) in [("stride", stride), ("dilation", dilation), ("kernel", kernel)] {
            if value == 0 {
                let message = format!("{op}: the {what} of the {axis} axis is 0, it must be at least 1");
                return Err(ConvError::out_of_range(&format!("{axis} {what}"), 1..=limit, 0, message));
            }
        }
        for (what, value) in [("input", input), ("stride", stride), ("padding", begin), ("padding", end)] {
            if value > limit {
                let message = format!("{op}: {axis} {what} {value} is larger than {limit}");
                return Err(ConvError::out_of_range(&format!("{axis} {what}"), 0..=limit, value, message));
            }
        }
        let span = (kernel - 1).checked_mul(dilation).and_then(|reach| reach.checked_add(1));
        // `input + begin + end` cannot overflow: each is below 2^31.
        let padded = input + begin + end;
        match span {
            Some(span) if span <= padded => {}
            _ => invalid!(
                "{op}: padded input {axis} {padded} is smaller than the dilated kernel {axis} {} \
                 (kernel {kernel}, dilation {dilation}, padding {begin}+{end})",
                span.map_or("beyond 2^64".into(), |span| span.to_string()),
            ),
        }
        if padded > limit {
            let message =
                format!("{op}: padded input {axis} {padded} (padding {begin}+{end}) is larger than {limit}");
            return Err(ConvError::out_of_range(&format!("padded input {axis}"), 0..=limit, padded, message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The closed formula counts exactly the window positions that fit.
        #[test]
        fn output_counts_the_windows_that_fit(
            input in 0usize..40, kernel in 1usize..6, stride in 1usize..6, dilation in 1usize..5,
            begin in 0usize..9, end in 0usize..9,
        ) {
            let axis = AxisGeometry { input, kernel, stride, dilation, padding: (begin, end) };
            let padded = input + begin + end;
            let last_taps = (0..).map(|q| q * stride + (kernel - 1) * dilation);
            let count = last_taps.take_while(|last| *last < padded).count();
            match axis.validate("test", "depth") {
                Ok(()) => prop_assert_eq!(axis.output(), count),
                Err(_) => prop_assert_eq!(count, 0),
            }
        }
    }

    /// The dilation of a single tap has no effect.
    #[test]
    fn a_single_tap_steps_by_one() {
        let step =
            |kernel| AxisGeometry { input: 9, kernel, stride: 1, dilation: 3, padding: (0, 0) }.tap_step();
        assert_eq!([step(1), step(2)], [1, 3]);
    }

    /// 2^31 - 1 coordinates are served, padding included, and no more.
    #[test]
    fn the_longest_axis() {
        let most = i32::MAX as usize;
        let validate = |input, padding, stride| {
            AxisGeometry { input, kernel: 1, stride, dilation: 1, padding }.validate("test", "depth")
        };
        assert_eq!(validate(most, (0, 0), most), Ok(()));
        assert_eq!(validate(most - 1, (1, 0), 1), Ok(()));
        assert_eq!(validate(0, (0, most), 1), Ok(()));
        assert_eq!(
            validate(most - 1, (1, 1), 1).expect_err("2^31").to_string(),
            "test: padded input depth 2147483648 (padding 1+1) is larger than 2147483647"
        );
        assert_eq!(
            validate(4, (0, 0), most + 1).expect_err("2^31").to_string(),
            "test: depth stride 2147483648 is larger than 2147483647"
        );
    }
}
