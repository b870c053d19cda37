//! The columns of a record, and the only code that reads or writes them.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::Path;

/// The header of every record. Older ones end at `verified`.
pub const COLUMNS: [&str; 19] = [
    "op",
    "case",
    "dtype",
    "pass",
    "implementation",
    "plan",
    "device",
    "backend",
    "median_ms",
    "p10_ms",
    "p90_ms",
    "gflops",
    "gbps",
    "share_of_limit",
    "max_err",
    "rms_err",
    "verified",
    "moved_mb",
    "launches",
];

/// Columns that every record has.
const FIRST_COLUMNS: usize = 17;

/// Our rows in the column `implementation`.
pub const OURS: &str = "ours";

/// What follows the backend of a row that the host's clock has timed.
pub const WALL_CLOCK: &str = ", wall clock";

/// One measurement. An empty cell is a value that was not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// `conv3d`, `causal_conv3d`, `causal_conv1d`, `rope2d`, `rope` or `training_step`.
    pub op: String,
    /// Name in the workload table; another memory order or size is a suffix.
    pub case: String,
    /// Storage type.
    pub dtype: String,
    /// `fwd`, `dx`, `dw`, `db`, `bwd` (every gradient), `fwd_bwd`, or a network's `first` such step.
    pub pass: String,
    /// Whose op: `ours`, `burn`, `pytorch`, `mlx` or `causal-conv1d`.
    pub implementation: String,
    /// Which of the implementation's algorithms.
    pub plan: String,
    /// What the adapter calls itself.
    pub device: String,
    /// Runtime and shader language, then [`WALL_CLOCK`] where the host's clock has timed.
    pub backend: String,
    /// Median time of one call.
    pub median_ms: Option<f64>,
    /// Tenth percentile of the time.
    pub p10_ms: Option<f64>,
    /// Ninetieth percentile of the time.
    pub p90_ms: Option<f64>,
    /// 10^9 operations per second, counting those of the direct algorithm.
    pub gflops: Option<f64>,
    /// 10^9 bytes per second, each tensor counted once.
    pub gbps: Option<f64>,
    /// The shortest time that the device's measured rates allow, over the median.
    pub share_of_limit: Option<f64>,
    /// Largest error over the RMS of the truth.
    pub max_err: Option<f64>,
    /// RMS error over the RMS of the truth.
    pub rms_err: Option<f64>,
    /// Whether every compared element was inside the bound of a correct kernel with fp32 sums.
    pub verified: Option<bool>,
    /// 10^6 bytes that a call's algorithm moves, copies included, where the op counts them.
    #[serde(default)]
    pub moved_mb: Option<f64>,
    /// Kernels that a call launches, where the op counts them.
    #[serde(default)]
    pub launches: Option<u64>,
}

impl Record {
    /// Whether the host's clock has timed this row.
    #[must_use]
    pub fn is_wall(&self) -> bool {
        self.backend.ends_with(WALL_CLOCK)
    }

    /// What is computed, by whom, timed by which clock: rows of equal keys are comparable.
    #[must_use]
    pub fn key(&self) -> [&str; 6] {
        let clock = if self.is_wall() { "wall" } else { "device" };
        [&self.op, &self.case, &self.dtype, &self.pass, &self.implementation, clock]
    }

    /// Refuses what no measurement gives.
    fn check(&self) -> Result<()> {
        let named = [
            ("median_ms", self.median_ms),
            ("p10_ms", self.p10_ms),
            ("p90_ms", self.p90_ms),
            ("gflops", self.gflops),
            ("gbps", self.gbps),
            ("share_of_limit", self.share_of_limit),
            ("moved_mb", self.moved_mb),
        ];
        for (name, value) in named {
            if let Some(value) = value {
                ensure!(value.is_finite() && value > 0.0, "{name} is {value}, a positive number is expected");
            }
        }
        if let (Some(low), Some(median), Some(high)) = (self.p10_ms, self.median_ms, self.p90_ms) {
            ensure!(
                low <= median && median <= high,
                "p10_ms {low}, median_ms {median} and p90_ms {high} are not in this order"
            );
        }
        Ok(())
    }
}

/// Reads a record.
///
/// # Errors
/// When the file cannot be read, its header is not [`COLUMNS`] (without the last two in older records), or a
/// row is no measurement.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    read_from(file).with_context(|| path.display().to_string())
}

/// Reads the rows of a text with a header.
///
/// # Errors
/// As [`read`].
pub fn read_from(text: impl std::io::Read) -> Result<Vec<Record>> {
    let mut reader = csv::Reader::from_reader(text);
    let header: Vec<String> = reader.headers()?.iter().map(String::from).collect();
    if header != COLUMNS && header != COLUMNS[..FIRST_COLUMNS] {
        let place = (0..COLUMNS.len().max(header.len()))
            .find(|i| header.get(*i).map(String::as_str) != COLUMNS.get(*i).copied())
            .unwrap_or_default();
        let found = header.get(place).map_or("nothing".into(), |name| format!("\"{name}\""));
        let wanted = COLUMNS.get(place).map_or("no further column".into(), |name| format!("\"{name}\""));
        bail!(
            "not a benchmark record: column {} of the header is {found}, expected {wanted} (the header is {})",
            place + 1,
            COLUMNS.join(",")
        );
    }
    let mut records = Vec::new();
    for (index, row) in reader.deserialize().enumerate() {
        let line = index + 2;
        let record: Record = row.with_context(|| format!("line {line}"))?;
        record.check().with_context(|| format!("line {line}"))?;
        records.push(record);
    }
    Ok(records)
}

/// Writes a record row by row, so that an interrupted run leaves what it has measured.
pub struct Writer {
    inner: csv::Writer<File>,
}

impl Writer {
    /// Creates the file with its header, and its folder where that is missing.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        }
        let file = File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut inner = csv::WriterBuilder::new().has_headers(false).from_writer(file);
        inner.write_record(COLUMNS)?;
        inner.flush()?;
        Ok(Self { inner })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// When the row is no measurement or cannot be written.
    pub fn push(&mut self, record: &Record) -> Result<()> {
        record.check()?;
        self.inner.serialize(record)?;
        Ok(self.inner.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Record {
        Record {
            op: "conv3d".into(),
            case: "a".into(),
            dtype: "f16".into(),
            pass: "dx".into(),
            implementation: OURS.into(),
            plan: "direct".into(),
            device: "a \"device\", quoted".into(),
            backend: "wgpu<spirv>".into(),
            median_ms: Some(2.0),
            p10_ms: Some(1.5),
            p90_ms: Some(2.25),
            gflops: Some(1000.0),
            gbps: Some(0.5),
            share_of_limit: Some(0.25),
            max_err: Some(0.0),
            rms_err: Some(3.33333e-7),
            verified: Some(true),
            moved_mb: Some(12.5),
            launches: Some(3),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/record.csv");
        let empty = Record { op: "rope2d".into(), case: "b".into(), ..Record::default() };
        let records = [full(), Record { verified: Some(false), ..full() }, empty];
        let mut writer = Writer::create(&path).unwrap();
        records.iter().for_each(|record| writer.push(record).unwrap());
        assert_eq!(read(&path).unwrap(), records);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], COLUMNS.join(","));
        assert_eq!(
            lines[1],
            "conv3d,a,f16,dx,ours,direct,\"a \"\"device\"\", quoted\",wgpu<spirv>,2.0,1.5,2.25,1000.0,0.5,0.25,0.0,\
             3.33333e-7,true,12.5,3"
        );
        assert_eq!(lines[3], "rope2d,b,,,,,,,,,,,,,,,,,");
        // A record is never overwritten.
        assert!(Writer::create(&path).is_err());
    }

    #[test]
    fn records_without_the_last_columns_are_read() {
        let row =
            "conv3d,a,f16,dx,ours,direct,d,wgpu<spirv>,2.0,1.5,2.25,1000.0,0.5,0.25,0.0,3.33333e-7,true";
        let text = format!("{}\n{row}\n", COLUMNS[..FIRST_COLUMNS].join(","));
        let want = Record { device: "d".into(), moved_mb: None, launches: None, ..full() };
        assert_eq!(read_from(text.as_bytes()).unwrap(), [want]);
    }

    #[test]
    fn the_header_is_the_fields_of_a_row() {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.serialize(full()).unwrap();
        let text = String::from_utf8(writer.into_inner().unwrap()).unwrap();
        assert_eq!(text.lines().next().unwrap(), COLUMNS.join(","));
    }

    #[test]
    fn a_wrong_header_is_refused_in_one_sentence() {
        let refusal = |text: &str| format!("{:#}", read_from(text.as_bytes()).unwrap_err());
        let text = refusal("layer,dtype,pass,plan,ms\na,f32,fwd,direct,1\n");
        assert!(text.contains("column 1 of the header is \"layer\", expected \"op\""), "{text}");
        let text = refusal(&COLUMNS.join(",").replace("plan", "algorithm"));
        assert!(text.contains("column 6 of the header is \"algorithm\", expected \"plan\""), "{text}");
        let text = refusal(&COLUMNS[..18].join(","));
        assert!(text.contains("column 19 of the header is nothing, expected \"launches\""), "{text}");
        let text = refusal(&COLUMNS[..16].join(","));
        assert!(text.contains("column 17 of the header is nothing, expected \"verified\""), "{text}");
        let text = refusal(&format!("{},more", COLUMNS.join(",")));
        assert!(text.contains("is \"more\", expected no further column"), "{text}");
    }

    #[test]
    fn rows_that_are_no_measurement_are_refused() {
        let refusal = |row: &str| {
            let text = format!("{}\n{row}\n", COLUMNS.join(","));
            format!("{:#}", read_from(text.as_bytes()).unwrap_err())
        };
        let text = refusal("conv3d,a,f32,fwd,ours,direct,d,b,-1,,,,,,,,,,");
        assert!(text.starts_with("line 2: median_ms is -1"), "{text}");
        let text = refusal("conv3d,a,f32,fwd,ours,direct,d,b,1,2,3,,,,,,,,");
        assert!(text.contains("p10_ms 2, median_ms 1 and p90_ms 3"), "{text}");
        assert!(refusal("conv3d,a,f32,fwd,ours,direct,d,b,fast,,,,,,,,,,").starts_with("line 2"));
    }

    #[test]
    fn the_clock_is_part_of_the_key() {
        let wall = Record { backend: format!("wgpu<spirv>{WALL_CLOCK}"), ..full() };
        assert!(wall.is_wall() && !full().is_wall());
        assert_ne!(wall.key(), full().key());
        assert_eq!(Record { plan: "other".into(), ..full() }.key(), full().key());
    }
}
