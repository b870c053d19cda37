//! Runs of a model that have to agree: with Burn's kernels, with these through `patch`, and on Flex. Used by
//! `crates/third-party-models` too.

use crate::support::{
    assert_all_served, assert_close, counted, difference, is_ours, launches, owned, set_patched,
};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

/// Results by name.
pub(crate) type Named = Vec<(String, TensorData)>;

/// How far two runs may be apart (see `assert_close`).
pub(crate) const TOLERANCE: f64 = 2e-4;

/// What runs of a model have to agree in.
pub(crate) struct Comparison<'a> {
    pub(crate) what: &'a str,
    /// Convolutions that Burn records for a run.
    pub(crate) convolutions: u64,
    /// Whether the model has matrix products that are no convolutions.
    pub(crate) products: bool,
    pub(crate) device: &'a Device,
    /// None where Flex is known to compute something else.
    pub(crate) flex: Option<&'a Device>,
}

impl Comparison<'_> {
    /// Fails where the results of the three runs differ, a convolution was not ours, or a kernel of ours ran
    /// unpatched.
    pub(crate) fn check(&self, run: &dyn Fn(&Device) -> Named) {
        let Self { what, convolutions, device, .. } = *self;
        set_patched(false);
        let ((burns, theirs), report) = counted(|| launches(|| run(device)));
        assert_eq!((report.recorded(), report.served()), (0, 0), "{what}, unpatched\n{report}");
        assert!(!theirs.iter().any(is_ours), "{what}: kernels of ours ran unpatched");
        set_patched(true);
        let ((ours, kernels), report) = counted(|| launches(|| run(device)));
        assert_all_served(what, &report, convolutions);
        // A convolution is one kernel or several.
        let launched = kernels.iter().filter(|name| is_ours(name)).count();
        assert!(launched as u64 >= convolutions, "{what}: {launched} kernels of ours ran");
        let left: Vec<_> = kernels.iter().filter(|name| self.is_burns_convolution(name)).collect();
        assert!(left.is_empty(), "{what}: Burn's kernels ran: {left:?}");
        let others = [("Burn's", Some(burns)), ("Flex's", self.flex.map(run))];
        for (whose, others) in others.iter().filter_map(|(whose, others)| Some((whose, others.as_ref()?))) {
            assert_eq!(ours.len(), others.len(), "{what}");
            let mut worst = 0.0;
            for ((name, ours), (_, others)) in ours.iter().zip(others) {
                assert_close(&format!("{what}: {name} and {whose}"), ours, others, TOLERANCE);
                worst = f64::max(worst, difference(ours, others));
            }
            println!("{what}: {} tensors, at most {worst:.1e} from {whose}, of {TOLERANCE:.0e}", ours.len());
        }
        let all = kernels.len();
        println!(
            "{what}: {convolutions} convolutions recorded and served, {launched} of {all} launches are ours"
        );
    }

    /// Whether a kernel is one of Burn's for convolutions.
    fn is_burns_convolution(&self, kernel: &&'static str) -> bool {
        let of_convolutions = kernel.contains("conv") || kernel.contains("im2col");
        !is_ours(kernel) && (of_convolutions || !self.products && kernel.contains("matmul"))
    }
}

/// The loss of each training step and its gradients. `loss` is of a model and a seed, another one at each
/// step.
pub(crate) fn train<M: Module>(
    mut model: M,
    steps: u64,
    learning_rate: f64,
    loss: impl Fn(&M, u64) -> Tensor<1>,
) -> Named {
    let mut optimizer: ModuleOptimizer = SgdConfig::new().init();
    let mut all = Vec::new();
    for seed in 0..steps {
        let (results, gradients) = backward(&model, loss(&model, seed));
        all.extend(results.into_iter().map(|(name, result)| (format!("step {}, {name}", seed + 1), result)));
        model = optimizer.step(learning_rate, model, gradients);
    }
    all
}

/// The loss and the gradients of all parameters, in the order of the module; the same gradients for an
/// optimizer.
pub(crate) fn backward<M: Module>(model: &M, loss: Tensor<1>) -> (Named, GradientsParams) {
    let gradients = loss.backward();
    let collected = vec![("loss".to_owned(), owned(loss.inner()))];
    let mut collect = Collect { path: Vec::new(), gradients: &gradients, collected };
    model.visit(&mut collect);
    let results = collect.collected;
    let gradients = GradientsParams::from_grads(gradients, model);
    assert_eq!(results.len(), 1 + gradients.len(), "each gradient that the optimizer has is compared");
    (results, gradients)
}

/// Results, and gradients by the paths of their parameters.
struct Collect<'a> {
    path: Vec<String>,
    gradients: &'a Gradients,
    collected: Named,
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        if let Some(gradient) = parameter.val().grad(self.gradients) {
            self.collected.push((self.path.join("."), owned(gradient)));
        }
    }
}
