//! Progress as plain text: one line per epoch on standard output, and a bar on standard error where that is a
//! terminal. burn-train's own terminal interface is used where standard output is one.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Instant;

use burn::train::Interrupter;
use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::{MetricDefinition, MetricId};
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation, MetricsRendererTraining,
};
use indicatif::{ProgressBar, ProgressStyle};

/// The last values of the metrics of one split, by name.
pub type Values = HashMap<String, f64>;

/// How plain text puts it.
#[derive(Clone, Copy, Debug)]
pub struct Wording {
    /// What the bar counts.
    pub unit: &'static str,
    /// The values of a split in a few words.
    pub summary: fn(&Values) -> String,
}

/// The value of a metric, NaN before its first.
#[must_use]
pub fn value(values: &Values, name: &str) -> f64 {
    values.get(name).copied().unwrap_or(f64::NAN)
}

/// The terminal interface where standard output is a terminal, unless `plain`; else plain text.
///
/// `finished` is the epoch a resumed run continues from.
pub fn renderer(
    plain: bool,
    interrupter: &Interrupter,
    finished: usize,
    wording: Wording,
) -> Box<dyn MetricsRenderer> {
    if std::io::stdout().is_terminal() && !plain {
        let checkpoint = (finished > 0).then_some(finished);
        Box::new(TuiMetricsRendererWrapper::new(interrupter.clone(), checkpoint))
    } else {
        Box::new(PlainRenderer::new(wording))
    }
}

/// A bar over `total` items of a task, such as reading files; a total of 0 is to be set later.
#[must_use]
pub fn bar(task: &'static str, total: usize) -> ProgressBar {
    let bar = ProgressBar::new(total as u64).with_prefix(task);
    match ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

struct PlainRenderer {
    wording: Wording,
    names: HashMap<MetricId, String>,
    train: Values,
    test: Values,
    epoch: usize,
    epochs: usize,
    started: Instant,
    bar: ProgressBar,
}

impl PlainRenderer {
    fn new(wording: Wording) -> Self {
        let template = format!("{{prefix}} {{wide_bar}} {{pos}}/{{len}} {}  {{msg}}", wording.unit);
        let style = ProgressStyle::with_template(&template);
        let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            wording,
            names: HashMap::new(),
            train: Values::new(),
            test: Values::new(),
            epoch: 1,
            epochs: 0,
            started: Instant::now(),
            bar,
        }
    }

    fn update(&mut self, is_train: bool, state: MetricState) {
        let MetricState::Numeric(entry, Some(value)) = state else { return };
        let Some(name) = self.names.get(&entry.metric_id) else { return };
        let values = if is_train { &mut self.train } else { &mut self.test };
        values.insert(name.clone(), value.current());
        self.bar.set_message((self.wording.summary)(values));
    }
}

impl MetricsRendererTraining for PlainRenderer {
    fn update_train(&mut self, state: MetricState) {
        self.update(true, state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.update(false, state);
    }
}

impl TrainingProgressLogger for PlainRenderer {
    fn start(&mut self, epochs: usize, first: usize, _items: Option<usize>, _label: Option<&str>) {
        (self.epochs, self.epoch, self.started) = (epochs, first, Instant::now());
    }

    fn start_split(&mut self, split: &str, total_items: usize) {
        let split = if split == "train" { "train" } else { "test " };
        self.bar.reset();
        self.bar.set_length(total_items as u64);
        self.bar.set_prefix(format!("epoch {}/{} {split}", self.epoch, self.epochs));
    }

    fn update_split(&mut self, items_processed: usize) {
        self.bar.set_position(items_processed as u64);
    }

    fn end_split(&mut self) {}

    fn update_epoch(&mut self, epoch: usize) {
        let width = self.epochs.to_string().len();
        let line = format!(
            "epoch {epoch:width$}/{}   train {}   test {}   {:6.1} s",
            self.epochs,
            (self.wording.summary)(&self.train),
            (self.wording.summary)(&self.test),
            self.started.elapsed().as_secs_f64()
        );
        self.bar.suspend(|| println!("{line}"));
        (self.epoch, self.started) = (epoch + 1, Instant::now());
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
    }

    fn log_event_training(&mut self, _event: String) {}
}

impl MetricsRenderer for PlainRenderer {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name.to_string());
    }
}

// burn-train wants one renderer for training and evaluation; this program evaluates in its own loop.
impl MetricsRendererEvaluation for PlainRenderer {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}
}

impl EvaluationProgressLogger for PlainRenderer {
    fn start_global_progress(&mut self, _total_tests: usize) {}
    fn start_test(&mut self, _name: &str, _total_items: usize) {}
    fn update_test_progress(&mut self, _items_processed: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _event: String) {}
}
