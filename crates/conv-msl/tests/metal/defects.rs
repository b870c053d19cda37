//! Defects that the suite must notice. Each is an edit of the emitted text such as a compiler bug or a
//! careless change of a kernel could cause; the test fails if the edit does not apply or if its results pass.

use crate::{causal_conv1d, conv3d, conv3d_sums, rope};
use conv_cases::conv3d::{Activation, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{Activation as KernelActivation, Plan};
use conv_kernels::{FloatType, IndexType, Limits};
use conv_msl::causal_conv1d::{CallVariant, table};
use conv_msl::{IndexWidth, rope as rope_variants};
use cubecl::prelude::*;
use msl_host::Recorder;
use regex::{Captures, Regex};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Defect {
    name: &'static str,
    /// Prefix of the kernels' names.
    kernel: &'static str,
    /// The text with the defect; unchanged where the defect does not apply.
    edit: fn(&str) -> String,
    /// Compares results with references; panics if they differ.
    suite: fn(&Client),
}

const BARRIER: &str = "threadgroup_barrier(mem_flags::mem_threadgroup);";

const DEFECTS: &[Defect] = &[
    Defect {
        name: "the barrier between filling a table of indices and reading it is missing",
        kernel: "fma_kernel",
        edit: |text| nth(text, BARRIER, 0, ""),
        suite: gemm,
    },
    Defect {
        name: "the barrier between reading a tile and filling it again is missing",
        kernel: "fma_kernel",
        edit: |text| nth(text, BARRIER, 1, ""),
        suite: gemm,
    },
    Defect {
        name: "the barrier between filling a tile and reading it is missing",
        kernel: "fma_kernel",
        edit: |text| nth(text, BARRIER, 2, ""),
        suite: gemm,
    },
    Defect {
        name: "the barrier between filling a tile and loading matrices from it is missing",
        kernel: "mma_kernel",
        edit: |text| nth(text, BARRIER, 2, ""),
        suite: gemm,
    },
    Defect {
        name: "a barrier inside a reduction is missing",
        kernel: "bias_gradient_kernel",
        edit: |text| nth(text, BARRIER, 2, ""),
        suite: bias,
    },
    Defect {
        name: "the barrier between reading the last channel and overwriting it with sums is missing",
        kernel: "few_outputs_kernel",
        edit: |text| nth(text, BARRIER, 2, ""),
        suite: heads,
    },
    Defect {
        name: "one thread skips a barrier",
        kernel: "bias_gradient_kernel",
        edit: |text| {
            let thread = Regex::new(r"thread_index_in_threadgroup_v\d+").unwrap();
            let thread = thread.find(text).map_or("", |found| found.as_str());
            nth(text, BARRIER, 1, &format!("if ({thread} != 3) {BARRIER}"))
        },
        suite: bias,
    },
    Defect {
        name: "the mask of the last elements is off by one",
        kernel: "activation_gradient_kernel",
        edit: |text| nth(text, " >= ", 1, " > "),
        suite: conv_activation,
    },
    Defect {
        name: "the mask of a tile's rows is off by one",
        kernel: "fma_kernel",
        edit: |text| {
            let after = text.rfind(BARRIER).unwrap_or(0);
            format!("{}{}", &text[..after], text[after..].replacen(" < ", " <= ", 1))
        },
        suite: gemm,
    },
    Defect {
        name: "height and width taps are swapped",
        kernel: "fma_kernel",
        // Divisors of an axis' taps: 3 to 5 of the 20 numbers of each axis.
        edit: |text| {
            let taps = Regex::new(r"scalars_u32\[(2|4)([345])\]").unwrap();
            let swap = |found: &Captures| {
                format!("scalars_u32[{}{}]", if &found[1] == "2" { 4 } else { 2 }, &found[2])
            };
            taps.replace_all(text, swap).into_owned()
        },
        suite: gemm,
    },
    Defect {
        name: "the tile of sums is stored transposed",
        kernel: "fma_kernel",
        edit: transpose_sums,
        suite: gemm,
    },
    Defect {
        name: "padding is not filled with zeros",
        kernel: "fma_kernel",
        // The initial value of a tile's element, before the load.
        edit: |text| {
            let zero = Regex::new(r"thread float \* v\d+ = &v\d+_store;\*v\d+ = (v\d+);").unwrap();
            let place = zero.captures_iter(text).nth(1).and_then(|found| found.get(1));
            place.map_or_else(String::new, |place| {
                format!("{}1.0f{}", &text[..place.start()], &text[place.end()..])
            })
        },
        suite: gemm,
    },
    Defect {
        name: "halves are rounded toward zero",
        kernel: "fma_kernel",
        edit: |text| {
            let helper = "inline half cut(float x) { half h = half(x); if (metal::abs(float(h)) > metal::abs(x)) \
                          h.raw -= 1; return h; }\nstruct info_st";
            let rounding = Regex::new(r"\bhalf\((v\d+)\)").unwrap();
            rounding.replace_all(text, "cut($1)").replacen("struct info_st", helper, 1)
        },
        suite: |client| conv(client, FloatType::F16),
    },
    Defect {
        name: "threadgroups are taken to be one thread larger than they are",
        kernel: "activation_gradient_kernel",
        edit: |text| nth(text, " = 256;", 0, " = 257;"),
        suite: conv_activation,
    },
    Defect {
        name: "a loop over sums ends one iteration early",
        kernel: "bias_gradient_kernel",
        edit: |text| {
            let loop_end = Regex::new(r"(bool const v\d+ = v\d+) < (v\d+;\s*return)").unwrap();
            // An iteration reads four values for each of 256 threads.
            loop_end.replace(text, "$1 + 1024 < $2").into_owned()
        },
        suite: bias,
    },
    Defect {
        name: "SiLU has the wrong sign",
        kernel: "forward_kernel",
        edit: |text| text.replace("exp(", "exp(-1.0f * "),
        suite: causal,
    },
    Defect {
        name: "steps of another sequence are read",
        kernel: "forward_kernel",
        edit: |text| nth(text, " == ", 0, " == 0 * "),
        suite: causal,
    },
    Defect {
        name: "the barrier between computing angles and reading those of other threads is missing",
        kernel: "rotate_kernel",
        edit: |text| text.replace(BARRIER, ""),
        suite: rotation,
    },
    Defect {
        name: "results go to the next element",
        kernel: "rotate_kernel",
        // All stores: neither the first nor the last is reached by every problem.
        edit: |text| {
            let store = Regex::new(r"(device \w+ \* const v\d+ = )&").unwrap();
            store.replace_all(text, "${1}1 + &").into_owned()
        },
        suite: rotation,
    },
    Defect {
        name: "a sine has the wrong sign",
        kernel: "rotate_kernel",
        edit: |text| match text.rfind(" - ") {
            Some(at) => format!("{} + {}", &text[..at], &text[at + 3..]),
            None => text.to_string(),
        },
        suite: rotation,
    },
];

/// `text` with occurrence `n` of `pattern` replaced.
fn nth(text: &str, pattern: &str, n: usize, replacement: &str) -> String {
    match text.match_indices(pattern).nth(n) {
        Some((at, _)) => format!("{}{replacement}{}", &text[..at], &text[at + pattern.len()..]),
        None => text.to_string(),
    }
}

/// Stores the sums of a square register tile transposed.
fn transpose_sums(text: &str) -> String {
    let after = text.rfind(BARRIER).unwrap_or(0);
    // Before the loop over K nothing else is addressed.
    let head = &text[..text.find("while(").unwrap_or(0)];
    let element = Regex::new(r"thread float \* const (v\d+) = &\(\*v\d+\)\[v\d+\];").unwrap();
    let sums: Vec<String> = element.captures_iter(head).map(|sum| sum[1].to_string()).collect();
    let side = (1..=8).find(|side| side * side == sums.len()).unwrap_or(0);
    let read = Regex::new(r"float const (v\d+) = \*(v\d+);").unwrap();
    let swap = |found: &Captures| match sums.iter().position(|sum| *sum == found[2]) {
        Some(at) if side > 1 => {
            format!("float const {} = *{};", &found[1], sums[at % side * side + at / side])
        }
        _ => found[0].to_string(),
    };
    format!("{}{}", &text[..after], read.replace_all(&text[after..], swap))
}

fn gemm(client: &Client) {
    conv(client, FloatType::F32);
}

/// A few-output layer whose sums would overwrite the last window before all threads have read it, without the
/// barrier between.
fn heads(client: &Client) {
    let limits = Limits { dtypes: vec![FloatType::F32], ..Limits::of(client) };
    let case =
        Conv3dCase { padding: [(1, 1); 3], ..Conv3dCase::new("head", [1, 3, 4, 17, 18], 3, [3, 3, 3]) };
    let picks = |plan: &Plan| matches!(plan, Plan::FewOutputs(_));
    conv3d::run_with((client, &limits), &[case], &fill::normal, false, conv3d::Selection::Only(picks));
}

/// A convolution with partial tiles in M, N and K, and several tiles along K.
fn conv(client: &Client, dtype: FloatType) {
    let limits = Limits { dtypes: vec![dtype], ..Limits::of(client) };
    let case = Conv3dCase {
        padding: [(1, 1), (1, 0), (0, 1)],
        activation: Activation::Silu,
        ..Conv3dCase::new("tails", [1, 5, 4, 5, 6], 7, [2, 3, 4])
    };
    conv3d::run_with(
        (client, &limits),
        &[case],
        &fill::normal,
        false,
        conv3d::Selection::Launches(|_, _, _| true),
    );
}

fn bias(client: &Client) {
    let case = Conv3dCase::new("bias", [2, 1, 4, 9, 11], 3, [1, 1, 1]);
    let problem = conv3d::problem(&case, FloatType::F32);
    conv3d_sums::check_bias_gradient((client, &Limits::of(client)), problem);
}

fn conv_activation(client: &Client) {
    conv3d_sums::check_activation_gradients((client, &Limits::of(client)));
}

fn causal(client: &Client) {
    let limits = Limits::of(client);
    let all = table(FloatType::F32, IndexWidth::Narrow);
    let wanted = |call: &&CallVariant| {
        call.ids == Some(IndexType::I32) && call.activation == KernelActivation::Silu && call.width == 4
    };
    let call = all.iter().find(wanted).expect("a call with ids and SiLU");
    let problem = call.problem().expect("a valid problem");
    let ids: Vec<i32> = (0..problem.batch * problem.length).map(|step| (step / 3 % 5) as i32).collect();
    let (_, wrong) = causal_conv1d::check((client, &limits), &problem, (&ids, IndexType::I32), true, false);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn rotation(client: &Client) {
    for (angles, d) in rope_variants::table() {
        rope::options::check_sources((client, &Limits::of(client)), FloatType::F32, angles, d);
    }
}

#[test]
fn seeded_defects_are_noticed() {
    let mut unnoticed = Vec::new();
    for defect in DEFECTS {
        // The suite passes on the original text.
        (defect.suite)(Recorder::executing().client());
        let (edit, kernel) = (defect.edit, defect.kernel);
        let applied = Arc::new(AtomicUsize::new(0));
        let count = applied.clone();
        let recorder = Recorder::executing_edited(Box::new(move |text| {
            if !text.contains(&format!("void {kernel}_")) {
                return text.to_string();
            }
            let edited = edit(text);
            count.fetch_add(usize::from(edited != text), Ordering::Relaxed);
            edited
        }));
        let result = catch_unwind(AssertUnwindSafe(|| (defect.suite)(recorder.client())));
        let edits = applied.load(Ordering::Relaxed);
        let message = match result {
            Ok(()) => None,
            Err(panic) => Some(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
        };
        println!("{} ({edits} kernels): {}", defect.name, message.as_deref().unwrap_or("NOT NOTICED"));
        assert!(edits > 0, "`{}` changed no text", defect.name);
        match message {
            None => unnoticed.push(defect.name),
            // A compile error is not a detection.
            Some(message) => assert!(!message.contains("does not compile"), "`{}`: {message}", defect.name),
        }
    }
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:?}");
}
