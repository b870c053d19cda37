//! PyTorch's results as goldens: the files' problems and tensors, and an op compared with them.

use crate::support::{check, upload, values};
use burn::serde::de::DeserializeOwned;
use burn::tensor::{Device, Tensor};
use conv_kernels::FloatType;
use conv_kernels::tolerance::Expected;
use safetensors::SafeTensors;
use std::path::Path;

/// A golden file and the problems in its metadata; golden/README.md has the schema.
pub(crate) fn read<P: DeserializeOwned>(name: &str) -> (Vec<u8>, Vec<P>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
    let metadata = metadata.metadata().as_ref().expect("metadata").clone();
    let problems = serde_json::from_str(&metadata["problems"]).expect("the schema of golden/README.md");
    (bytes, problems)
}

/// How many problems of a file one is taken of: a software device compiles for most of them.
pub(crate) fn step(on: &str) -> usize {
    if on == "gpu" && !conv_testing::is_full() { 3 } else { 1 }
}

/// A problem's f32 tensors, by name.
#[derive(Clone)]
pub(crate) struct Tensors<'a> {
    pub(crate) file: &'a SafeTensors<'a>,
    pub(crate) problem: usize,
    pub(crate) device: Device,
}

impl Tensors<'_> {
    pub(crate) fn values(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let view = self.file.tensor(&format!("{}.{name}", self.problem)).expect("a tensor of the problem");
        let values =
            view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("4")));
        (values.collect(), view.shape().to_vec())
    }

    pub(crate) fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        let (values, shape) = self.values(name);
        upload(&values, shape.try_into().expect("the rank of the op"), &self.device)
    }

    /// y, dx, dw and db (if there is a bias) of `op`, on request of the tensors' absolute values.
    fn results<const D: usize>(
        &self,
        bias: bool,
        op: &impl Fn(Tensor<D>, Tensor<D>, Option<Tensor<1>>) -> Tensor<D>,
        absolute: bool,
    ) -> Vec<Vec<f64>> {
        let map = |tensor: Tensor<D>| if absolute { tensor.abs() } else { tensor };
        let x = map(self.tensor("x")).require_grad();
        let w = map(self.tensor("w")).require_grad();
        let b = bias.then(|| {
            let b = self.tensor::<1>("b");
            if absolute { b.abs() } else { b }.require_grad()
        });
        let y = op(x.clone(), w.clone(), b.clone());
        let gradients = (y.clone() * map(self.tensor("dy"))).sum().backward();
        let of = |grad: Option<Tensor<D>>| values(grad.expect("a gradient"));
        let mut all = vec![values(y), of(x.grad(&gradients)), of(w.grad(&gradients))];
        all.extend(b.map(|b| values(b.grad(&gradients).expect("db"))));
        all
    }

    /// `op` and its gradients against PyTorch's, within the bound of fp32 sums. The magnitudes of the bound
    /// are the op of absolute values.
    pub(crate) fn check_op<const D: usize>(
        &self,
        what: &str,
        bias: bool,
        op: impl Fn(Tensor<D>, Tensor<D>, Option<Tensor<1>>) -> Tensor<D>,
    ) {
        let got = self.results(bias, &op, false);
        let on_cpu = Tensors { device: Device::flex().autodiff(), ..self.clone() };
        let magnitudes = on_cpu.results(bias, &op, true);
        let terms = [self.values("w").0.len(), self.values("dy").0.len()];
        for (index, name) in ["y", "dx", "dw", "db"].into_iter().enumerate().take(got.len()) {
            let want: Vec<f64> = self.values(name).0.into_iter().map(f64::from).collect();
            let expected = Expected {
                values: &want,
                magnitudes: &magnitudes[index],
                terms: terms[index / 2] + 1,
                dtype: FloatType::F32,
                slope: 1.0,
            };
            check(&format!("{what} {name}"), &expected, &got[index]);
        }
    }
}
