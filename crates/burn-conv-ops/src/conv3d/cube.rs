//! conv3d and its gradients through `conv-kernels`.

use crate::backend::Conv3dCall;
use crate::backend::cube::{allocate, operand};
use burn::tensor::DType;
use burn_cubecl::cubecl::prelude::Client;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use conv_kernels::conv3d::{self, Activation, Added, Algorithm, Pass, Plan, WinogradTile, winograd};
use conv_kernels::{ConvError, Limits, Operand};
use std::sync::Arc;

/// What decides a launch: the device's limits and, once it was asked for, the plan of one pass of one
/// problem. `patch` keeps it for the next call of that problem.
pub(crate) struct Decided {
    pub(crate) limits: Arc<Limits>,
    plan: Option<Plan>,
}

impl Decided {
    /// Nothing but the device.
    pub(crate) fn on(client: &Client) -> Self {
        Self { limits: Limits::shared(client), plan: None }
    }

    /// The plan that the call was checked for; a pure function of problem, pass and device.
    pub(crate) fn plan(&mut self, call: &Conv3dCall, pass: Pass) -> Result<Plan, ConvError> {
        if let Some(plan) = self.plan {
            return Ok(plan);
        }
        let plan = match pass {
            Pass::Forward => conv3d::plan(&call.problem, pass, call.algorithm, &self.limits),
            _ => conv3d::gradient_plan(&call.problem, pass, call.algorithm, &self.limits),
        }?;
        self.plan = Some(plan);
        Ok(plan)
    }

    /// The plan to launch on these operands: [`Self::plan`], or with the feature `autotune`, where none is
    /// forced, the fastest of a few. A stream's forward pass is not timed: its plan must not depend on the
    /// number of frames. A call that reads kept filters has another path ([`forward_prepared`]).
    fn launched(
        &mut self,
        call: &Conv3dCall,
        pass: Pass,
        client: &Client,
        operands: [&Operand; 3],
    ) -> Result<Plan, ConvError> {
        let fixed = call.problem.streaming && pass == Pass::Forward;
        if cfg!(feature = "autotune") && call.algorithm == Algorithm::Auto && !fixed {
            return conv3d::fastest_plan(client, &self.limits, &call.problem, pass, operands);
        }
        self.plan(call, pass)
    }
}

/// The bias and the residual as the kernels see them.
struct Terms([Option<Operand>; 2]);

impl Terms {
    fn of([bias, residual]: [Option<&CubeTensor>; 2]) -> Result<Self, ConvError> {
        Ok(Self([bias.map(operand).transpose()?, residual.map(operand).transpose()?]))
    }

    fn as_added(&self) -> Added<'_> {
        Added { bias: self.0[0].as_ref(), residual: self.0[1].as_ref() }
    }
}

/// y and, `with_pre`, what its activation is applied to; `added` are the bias and the residual. Here and
/// below.
pub(crate) fn forward(
    x: &CubeTensor,
    weight: &CubeTensor,
    added: [Option<&CubeTensor>; 2],
    call: &Conv3dCall,
    with_pre: bool,
) -> Result<(CubeTensor, Option<CubeTensor>), ConvError> {
    forward_by(&mut Decided::on(&x.client), x, weight, added, call, with_pre)
}

/// [`forward`] with what is decided already; below as well.
pub(crate) fn forward_by(
    decided: &mut Decided,
    x: &CubeTensor,
    weight: &CubeTensor,
    added: [Option<&CubeTensor>; 2],
    call: &Conv3dCall,
    with_pre: bool,
) -> Result<(CubeTensor, Option<CubeTensor>), ConvError> {
    let (client, problem) = (&x.client, &call.problem);
    let y = allocate(x, &problem.y_shape(), x.dtype);
    let pre = with_pre.then(|| allocate(x, &problem.y_shape(), DType::F32));
    let terms = Terms::of(added)?;
    let (operands, added) = ([&operand(x)?, &operand(weight)?, &operand(&y)?], terms.as_added());
    let plan = decided.launched(call, Pass::Forward, client, operands)?;
    let limits = &*decided.limits;
    match pre.as_ref().map(operand).transpose()? {
        None => conv3d::forward(client, limits, problem, &plan, operands, added)?,
        Some(pre) => conv3d::forward_with_pre(client, limits, problem, &plan, operands, &pre, added)?,
    }
    Ok((y, pre))
}

/// [`forward`] of x and a cache.
pub(crate) fn forward_cached(
    inputs: [CubeTensor; 2],
    weight: &CubeTensor,
    added: [Option<&CubeTensor>; 2],
    call: &Conv3dCall,
    with_pre: bool,
) -> Result<(CubeTensor, Option<CubeTensor>), ConvError> {
    let (problem, limits) = (&call.problem, Limits::shared(&inputs[0].client));
    let plan = conv3d::plan(problem, Pass::Forward, call.algorithm, &limits)?;
    let [x, cache] = readable(&plan, inputs)?;
    let y = allocate(&x, &problem.y_shape(), x.dtype);
    let pre = with_pre.then(|| allocate(&x, &problem.y_shape(), DType::F32));
    let pre_operand = pre.as_ref().map(operand).transpose()?;
    let added = Terms::of(added)?;
    let operands = [&operand(&x)?, &operand(weight)?, &operand(&y)?];
    let others = (&operand(&cache)?, pre_operand.as_ref(), added.as_added());
    conv3d::forward_cached(&x.client, &limits, problem, &plan, operands, others)?;
    Ok((y, pre))
}

pub(crate) fn weight_gradient_cached(
    inputs: [CubeTensor; 2],
    dy: &CubeTensor,
    call: &Conv3dCall,
) -> Result<CubeTensor, ConvError> {
    let limits = Limits::shared(&inputs[0].client);
    let plan = conv3d::gradient_plan(&call.problem, Pass::WeightGradient, call.algorithm, &limits)?;
    let [x, cache] = readable(&plan, inputs)?;
    let dw = allocate(&x, &call.problem.weight_shape(), x.dtype);
    let operands = [&operand(&x)?, &operand(dy)?, &operand(&dw)?];
    conv3d::weight_gradient_cached(&x.client, &limits, &call.problem, &plan, operands, &operand(&cache)?)?;
    Ok(dw)
}

/// x and the cache, copied where the plan does not read them as they are.
fn readable(plan: &Plan, [x, cache]: [CubeTensor; 2]) -> Result<[CubeTensor; 2], ConvError> {
    let reads = conv3d::reads_cache(plan, &operand(&x)?, &operand(&cache)?);
    Ok(if reads { [x, cache] } else { [x, cache].map(into_contiguous) })
}

pub(crate) fn prepare(
    weight: &CubeTensor,
    call: &Conv3dCall,
    tile: WinogradTile,
) -> Result<CubeTensor, ConvError> {
    let limits = Limits::shared(&weight.client);
    let filters = allocate(weight, &winograd::prepared_shape(&call.problem, tile), DType::F32);
    let operands = [&operand(weight)?, &operand(&filters)?];
    winograd::prepare(&weight.client, &limits, &call.problem, tile, operands)?;
    Ok(filters)
}

pub(crate) fn forward_prepared(
    x: &CubeTensor,
    filters: &CubeTensor,
    added: [Option<&CubeTensor>; 2],
    call: &Conv3dCall,
) -> Result<CubeTensor, ConvError> {
    let (problem, limits) = (&call.problem, Limits::shared(&x.client));
    let plan = conv3d::plan(problem, Pass::Forward, call.algorithm, &limits)?;
    let Plan::Winograd(config) = plan else {
        let plan = plan.name();
        return Err(ConvError::Invalid(format!(
            "conv3d: the filters were prepared for Winograd, the plan of this call is {plan}"
        )));
    };
    let y = allocate(x, &problem.y_shape(), x.dtype);
    let added = Terms::of(added)?;
    let operands = [&operand(x)?, &operand(filters)?, &operand(&y)?];
    winograd::forward_prepared(&x.client, &limits, problem, config, operands, added.as_added())?;
    Ok(y)
}

pub(crate) fn input_gradient(
    dy: &CubeTensor,
    weight: &CubeTensor,
    call: &Conv3dCall,
) -> Result<CubeTensor, ConvError> {
    input_gradient_by(&mut Decided::on(&dy.client), dy, weight, call)
}

pub(crate) fn input_gradient_by(
    decided: &mut Decided,
    dy: &CubeTensor,
    weight: &CubeTensor,
    call: &Conv3dCall,
) -> Result<CubeTensor, ConvError> {
    let dx = allocate(dy, &call.problem.x_shape(), dy.dtype);
    let operands = [&operand(dy)?, &operand(weight)?, &operand(&dx)?];
    let plan = decided.launched(call, Pass::InputGradient, &dy.client, operands)?;
    conv3d::input_gradient(&dy.client, &decided.limits, &call.problem, &plan, operands)?;
    Ok(dx)
}

pub(crate) fn transposed(
    x: &CubeTensor,
    weight: &CubeTensor,
    bias: Option<&CubeTensor>,
    call: &Conv3dCall,
    with_pre: bool,
) -> Result<(CubeTensor, Option<CubeTensor>), ConvError> {
    transposed_by(&mut Decided::on(&x.client), x, weight, bias, call, with_pre)
}

pub(crate) fn transposed_by(
    decided: &mut Decided,
    x: &CubeTensor,
    weight: &CubeTensor,
    bias: Option<&CubeTensor>,
    call: &Conv3dCall,
    with_pre: bool,
) -> Result<(CubeTensor, Option<CubeTensor>), ConvError> {
    let (client, problem) = (&x.client, &call.problem);
    let y = allocate(x, &problem.x_shape(), x.dtype);
    let pre = with_pre.then(|| allocate(x, &problem.x_shape(), DType::F32));
    let bias = bias.map(operand).transpose()?;
    let (operands, bias) = ([&operand(x)?, &operand(weight)?, &operand(&y)?], bias.as_ref());
    let plan = decided.launched(call, Pass::InputGradient, client, operands)?;
    let limits = &*decided.limits;
    match pre.as_ref().map(operand).transpose()? {
        None => conv3d::transposed_forward(client, limits, problem, &plan, operands, bias)?,
        Some(pre) => {
            conv3d::transposed_forward_with_pre(client, limits, problem, &plan, operands, &pre, bias)?;
        }
    }
    Ok((y, pre))
}

pub(crate) fn weight_gradient(
    x: &CubeTensor,
    dy: &CubeTensor,
    call: &Conv3dCall,
) -> Result<CubeTensor, ConvError> {
    weight_gradient_by(&mut Decided::on(&x.client), x, dy, call)
}

pub(crate) fn weight_gradient_by(
    decided: &mut Decided,
    x: &CubeTensor,
    dy: &CubeTensor,
    call: &Conv3dCall,
) -> Result<CubeTensor, ConvError> {
    let dw = allocate(x, &call.problem.weight_shape(), x.dtype);
    let call = &call.whole();
    let operands = [&operand(x)?, &operand(dy)?, &operand(&dw)?];
    let plan = decided.launched(call, Pass::WeightGradient, &x.client, operands)?;
    conv3d::weight_gradient(&x.client, &decided.limits, &call.problem, &plan, operands)?;
    Ok(dw)
}

pub(crate) fn weight_and_bias_gradient(
    x: &CubeTensor,
    dy: &CubeTensor,
    call: &Conv3dCall,
) -> Result<(CubeTensor, CubeTensor), ConvError> {
    let mut decided = Decided::on(&x.client);
    let dw = allocate(x, &call.problem.weight_shape(), x.dtype);
    let db = allocate(x, &[call.problem.out_channels], x.dtype);
    let call = &call.whole();
    let operands = [&operand(x)?, &operand(dy)?, &operand(&dw)?];
    let plan = decided.launched(call, Pass::WeightGradient, &x.client, operands)?;
    conv3d::weight_and_bias_gradient(
        &x.client,
        &decided.limits,
        &call.problem,
        &plan,
        operands,
        &operand(&db)?,
    )?;
    Ok((dw, db))
}

pub(crate) fn bias_gradient(dy: &CubeTensor, call: &Conv3dCall) -> Result<CubeTensor, ConvError> {
    let limits = Limits::shared(&dy.client);
    let db = allocate(dy, &[call.problem.out_channels], dy.dtype);
    conv3d::bias_gradient(&dy.client, &limits, &call.problem, &operand(dy)?, &operand(&db)?)?;
    Ok(db)
}

pub(crate) fn activation_gradient(
    saved: &CubeTensor,
    dy: &CubeTensor,
    activation: Activation,
) -> Result<CubeTensor, ConvError> {
    let limits = Limits::shared(&dy.client);
    let dpre = allocate(dy, dy.meta.shape(), dy.dtype);
    let operands = [&operand(saved)?, &operand(dy)?, &operand(&dpre)?];
    conv3d::activation_gradient(&dy.client, &limits, activation, operands)?;
    Ok(dpre)
}
