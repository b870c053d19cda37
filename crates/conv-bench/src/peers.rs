//! Other implementations in a process of Python: `benchmarks/peers.py`, which says what is exchanged.
//!
//! The process gets problems, the samples and seeds of their inputs and the places that are compared; it
//! gives back values and times. Verification, statistics and the record are the same as for our own rows.

use crate::bench::Row;
use crate::data::samples;
use crate::measure::Timer;
use crate::verify::Truth;
use anyhow::{Context, Result, ensure};
use conv_kernels::FloatType;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use tempfile::TempDir;

/// The script, so that the program runs wherever it lies.
const SCRIPT: &str = include_str!("../../../benchmarks/peers.py");

/// A problem: its fields by name.
pub(crate) type Job = Map<String, Value>;

/// A problem from `json!({..})`.
pub(crate) fn job(value: Value) -> Job {
    if let Value::Object(fields) = value { fields } else { Job::new() }
}

/// The process.
pub(crate) struct Peers {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: TempDir,
    peers: Vec<Peer>,
}

#[derive(Clone, Debug, Deserialize)]
struct Peer {
    name: String,
    device: String,
    backend: String,
}

#[derive(Debug, Deserialize)]
struct Hello {
    peers: Vec<Peer>,
    missing: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Reply {
    answers: Vec<RawAnswer>,
}

#[derive(Debug, Deserialize)]
struct RawAnswer {
    peer: String,
    #[serde(default)]
    plan: String,
    #[serde(default)]
    milliseconds: Vec<f64>,
    error: Option<String>,
}

/// What one peer says of a problem.
pub(crate) struct Answer {
    pub(crate) peer: String,
    pub(crate) device: String,
    pub(crate) backend: String,
    pub(crate) result: Result<Measured, String>,
}

/// A peer's result and times.
pub(crate) struct Measured {
    pub(crate) plan: String,
    pub(crate) milliseconds: Vec<f64>,
    /// Of each result the elements that are known.
    pub(crate) values: Vec<Vec<f64>>,
}

impl Peers {
    /// Starts the process, and says which peers it has and which are missing and why.
    pub(crate) fn start(python: &Path, timer: &Timer, software: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let script = folder.path().join("peers.py");
        fs::write(&script, SCRIPT)?;
        let mut tables = Job::new();
        for dtype in FloatType::ALL {
            let path = folder.path().join(format!("samples-{}.bin", dtype.name()));
            let bytes: Vec<u8> = samples(dtype).into_iter().flat_map(f32::to_le_bytes).collect();
            fs::write(&path, bytes)?;
            tables.insert(dtype.name().into(), json!(path));
        }
        let mut child = Command::new(python)
            .arg(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} could not be started", python.display()))?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("the process has no output")?);
        let mut peers = Self { child, requests, answers, folder, peers: Vec::new() };
        let hello = json!({
            "folder": peers.folder.path(),
            "samples": timer.samples,
            "warm_up_ms": timer.warm_up.as_millis() as u64,
            "software": software,
            "tables": tables,
        });
        let Hello { peers: found, missing } = peers.exchange(&hello)?;
        for Peer { name, device, backend } in &found {
            println!("peer {name}: {device} through {backend}");
        }
        missing.iter().for_each(|text| println!("no peer {text}"));
        peers.peers = found;
        Ok(peers)
    }

    fn exchange<T: for<'a> Deserialize<'a>>(&mut self, request: &Value) -> Result<T> {
        let requests = self.requests.as_mut().context("the process has no input")?;
        writeln!(requests, "{request}").and_then(|()| requests.flush()).context("the process has ended")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the process has ended");
        serde_json::from_str(&line).with_context(|| format!("not an answer: {}", line.trim()))
    }

    /// Lets every peer compute the results of a row and time them.
    ///
    /// # Errors
    /// When the process has ended.
    pub(crate) fn ask(&mut self, row: &Row, truths: &[Rc<Truth>], mut job: Job) -> Result<Vec<Answer>> {
        if self.peers.is_empty() {
            return Ok(Vec::new());
        }
        let mut positions = Vec::new();
        for (index, truth) in truths.iter().enumerate() {
            let path = self.folder.path().join(format!("positions-{index}.bin"));
            positions.push(match &truth.positions {
                None => Value::Null,
                Some(known) => {
                    let bytes: Vec<u8> =
                        known.iter().flat_map(|place| (*place as i64).to_le_bytes()).collect();
                    fs::write(&path, bytes)?;
                    json!(path)
                }
            });
        }
        job.insert("pass".into(), json!(row.pass.name()));
        job.insert("dtype".into(), json!(row.dtype.name()));
        job.insert("positions".into(), json!(positions));
        let reply: Reply = self.exchange(&Value::Object(job))?;
        let answers = reply.answers.into_iter().filter_map(|raw| {
            let Peer { name, device, backend } =
                self.peers.iter().find(|peer| peer.name == raw.peer)?.clone();
            let result = self.result(raw, truths);
            Some(Answer { peer: name, device, backend, result })
        });
        Ok(answers.collect())
    }

    fn result(&self, raw: RawAnswer, truths: &[Rc<Truth>]) -> Result<Measured, String> {
        if let Some(error) = raw.error {
            return Err(error);
        }
        if raw.milliseconds.is_empty() {
            return Err("it gave no time".into());
        }
        let path = |index| self.folder.path().join(format!("{}-{index}.bin", raw.peer));
        let values = truths.iter().enumerate().map(|(index, truth)| known_values(&path(index), truth));
        Ok(Measured {
            plan: raw.plan,
            milliseconds: raw.milliseconds,
            values: values.collect::<Result<_, _>>()?,
        })
    }

    /// A file of integers for a problem's use.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn integers(&self, name: &str, values: &[i64]) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        fs::write(&path, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        Ok(path)
    }
}

/// What a peer computed at the known places.
fn known_values(path: &Path, truth: &Truth) -> Result<Vec<f64>, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let (words, _) = bytes.as_chunks::<8>();
    let values: Vec<f64> = words.iter().map(|word| f64::from_le_bytes(*word)).collect();
    if values.len() != truth.values.len() {
        return Err(format!(
            "the result has {} known elements, expected {}",
            values.len(),
            truth.values.len()
        ));
    }
    Ok(values)
}

impl Drop for Peers {
    fn drop(&mut self) {
        // The script ends with its input.
        self.requests.take();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Memory;
    use conv_kernels::tolerance::Guard;

    #[test]
    fn values_of_another_number_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("values.bin");
        let truth = Truth {
            shape: vec![9],
            memory: Memory::RowMajor,
            positions: Some(vec![0, 8]),
            values: vec![1.0, 2.0],
            magnitudes: vec![1.0, 2.0],
            terms: 1,
            slope: 1.0,
            guard: Guard::SUM,
        };
        let write = |values: &[f64]| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            fs::write(&path, bytes).unwrap();
        };
        write(&[1.0, 2.5]);
        assert_eq!(known_values(&path, &truth).unwrap(), [1.0, 2.5]);
        write(&[1.0]);
        assert!(known_values(&path, &truth).unwrap_err().contains("1 known elements, expected 2"));
    }

    #[test]
    fn a_peer_that_fails_says_why() {
        let text = r#"{"answers": [{"peer": "mlx", "error": "no groups"}, {"peer": "pytorch", "plan": "conv3d",
            "milliseconds": [1.5]}]}"#;
        let reply: Reply = serde_json::from_str(text).unwrap();
        assert_eq!(reply.answers[0].error.as_deref(), Some("no groups"));
        assert_eq!((reply.answers[1].plan.as_str(), reply.answers[1].milliseconds[0]), ("conv3d", 1.5));
    }
}
