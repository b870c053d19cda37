//! NIfTI-1 files (`.nii`, `.nii.gz`): a header of 348 bytes, then the voxels with x innermost.
//!
//! ```text
//! offset   0  i32     348, which also tells the byte order
//!         40  i16[8]  number of axes, then the extents of x, y, z, ..
//!         70  i16     type of the voxels
//!         72  i16     bits of a voxel
//!        108  f32     offset of the first voxel
//!        112  f32[2]  slope and intercept of the values; a slope of 0 is none
//!        344  [u8;4]  "n+1\0": the voxels are in the same file
//! ```
//!
//! Volumes of three axes are read (further ones may have one element); where they are in space is not.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use example_common::images::has_extension;
use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

const HEADER: usize = 348;
/// Header and the four bytes that say that no extension follows.
const VOXELS: usize = HEADER + 4;
/// Bytes of a volume that are still read.
const MOST_BYTES: u64 = 1 << 33;

/// A volume of numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Numbers {
    /// D, H and W: z, y and x of the file.
    pub(crate) shape: [usize; 3],
    /// With W innermost.
    pub(crate) values: Vec<f32>,
}

/// Voxels to be written, W innermost.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Voxels<'a> {
    U8(&'a [u8]),
    I16(&'a [i16]),
}

/// Reads a file; the error calls it `what`.
pub(crate) fn read(what: &str, path: &Path) -> Result<Numbers> {
    let read = || {
        let mut file = BufReader::new(File::open(path)?);
        // The content decides, not the name.
        if file.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
            decode(MultiGzDecoder::new(file))
        } else {
            decode(file)
        }
    };
    read().with_context(|| format!("{what} {} cannot be read", path.display()))
}

/// How the first bytes of eight, in the processor's order, become a number.
type ToNumber = fn([u8; 8]) -> f32;

/// Type of the voxels by the header's code: bytes of one, and how they become a number.
fn voxel_type(code: i16) -> Option<(usize, ToNumber)> {
    fn first<const N: usize>(bytes: [u8; 8]) -> [u8; N] {
        std::array::from_fn(|i| bytes[i])
    }
    Some(match code {
        2 => (1, |b| f32::from(b[0])),
        4 => (2, |b| f32::from(i16::from_ne_bytes(first(b)))),
        8 => (4, |b| i32::from_ne_bytes(first(b)) as f32),
        16 => (4, |b| f32::from_ne_bytes(first(b))),
        64 => (8, |b| f64::from_ne_bytes(b) as f32),
        256 => (1, |b| f32::from(b[0].cast_signed())),
        512 => (2, |b| f32::from(u16::from_ne_bytes(first(b)))),
        768 => (4, |b| u32::from_ne_bytes(first(b)) as f32),
        1024 => (8, |b| i64::from_ne_bytes(b) as f32),
        1280 => (8, |b| u64::from_ne_bytes(b) as f32),
        _ => return None,
    })
}

/// Numbers of a header in its byte order.
struct Header {
    bytes: [u8; HEADER],
    swapped: bool,
}

impl Header {
    /// The bytes of a number in the processor's order.
    fn number<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = std::array::from_fn(|i| self.bytes[offset + i]);
        if self.swapped {
            bytes.reverse();
        }
        bytes
    }

    fn i16(&self, offset: usize) -> i16 {
        i16::from_ne_bytes(self.number(offset))
    }

    fn f32(&self, offset: usize) -> f32 {
        f32::from_ne_bytes(self.number(offset))
    }
}

fn decode(mut file: impl Read) -> Result<Numbers> {
    let mut header = Header { bytes: [0; HEADER], swapped: false };
    match file.read_exact(&mut header.bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            bail!("it is no NIfTI-1 file: it ends within the header")
        }
        read => read?,
    }
    match i32::from_ne_bytes(header.number(0)) {
        348 => {}
        540 | 469_893_120 => bail!("it is a NIfTI-2 file, NIfTI-1 is read"),
        size if size.swap_bytes() == 348 => header.swapped = true,
        _ => bail!("it is no NIfTI-1 file"),
    }
    match &header.bytes[344..] {
        b"n+1\0" => {}
        b"ni1\0" => bail!("its voxels are in a file of their own, .nii and .nii.gz are read"),
        _ => bail!("it is no NIfTI-1 file"),
    }
    let axes = header.i16(40);
    ensure!((1..=7).contains(&axes), "it has {axes} axes");
    let extents: Vec<i16> = (1..=axes as usize).map(|axis| header.i16(40 + 2 * axis)).collect();
    ensure!(
        axes >= 3
            && extents.iter().all(|&extent| extent > 0)
            && extents[3..].iter().all(|&extent| extent == 1),
        "its axes have {extents:?} elements, volumes of three axes are read"
    );
    let shape = [2, 1, 0].map(|axis| extents[axis] as usize);
    let code = header.i16(70);
    let (size, number) =
        voxel_type(code).with_context(|| format!("its voxels are of type {code}, which is not read"))?;
    let bytes = shape.iter().map(|&extent| extent as u64).product::<u64>() * size as u64;
    ensure!(bytes <= MOST_BYTES, "its voxels take {bytes} bytes, at most {MOST_BYTES} are read");
    let offset = header.f32(108);
    ensure!((VOXELS as f32..1e9).contains(&offset), "its voxels begin at byte {offset}");
    std::io::copy(&mut file.by_ref().take(offset as u64 - HEADER as u64), &mut std::io::sink())?;
    // Grows as bytes arrive: a header alone cannot make it large.
    let mut raw = Vec::new();
    file.take(bytes).read_to_end(&mut raw)?;
    ensure!(raw.len() as u64 == bytes, "it ends after {} of {bytes} bytes of voxels", raw.len());

    let (slope, intercept) = (header.f32(112), header.f32(116));
    let scaled = slope.is_finite() && slope != 0.0 && intercept.is_finite();
    let value = |voxel: &[u8]| {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(voxel);
        if header.swapped {
            bytes[..size].reverse();
        }
        let value = number(bytes);
        if scaled { value * slope + intercept } else { value }
    };
    Ok(Numbers { shape, values: raw.chunks_exact(size).map(value).collect() })
}

/// Writes a file, compressed where its name ends in `.gz`; voxels are cubes of a millimetre.
pub(crate) fn write(path: &Path, shape: [usize; 3], voxels: Voxels<'_>) -> Result<()> {
    let write = || {
        let file = BufWriter::new(File::create(path)?);
        if has_extension(path, "gz") {
            let mut file = GzEncoder::new(file, Compression::fast());
            encode(&mut file, shape, voxels)?;
            file.finish()?.flush()?;
        } else {
            let mut file = file;
            encode(&mut file, shape, voxels)?;
            file.flush()?;
        }
        anyhow::Ok(())
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

fn encode(file: &mut impl Write, shape: [usize; 3], voxels: Voxels<'_>) -> Result<()> {
    let (code, size, raw): (i16, i16, Vec<u8>) = match voxels {
        Voxels::U8(values) => (2, 1, values.to_vec()),
        Voxels::I16(values) => (4, 2, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    };
    ensure!(
        raw.len() == shape.iter().product::<usize>() * size as usize,
        "{shape:?} voxels take other than {} bytes",
        raw.len()
    );
    let mut bytes = [0; VOXELS];
    let mut put = |offset: usize, number: &[u8]| bytes[offset..offset + number.len()].copy_from_slice(number);
    put(0, &348i32.to_le_bytes());
    put(40, &3i16.to_le_bytes());
    for (axis, extent) in [shape[2], shape[1], shape[0], 1, 1, 1, 1].into_iter().enumerate() {
        put(42 + 2 * axis, &i16::try_from(extent).context("an axis is too long")?.to_le_bytes());
    }
    put(70, &code.to_le_bytes());
    put(72, &(8 * size).to_le_bytes());
    for axis in 0..4 {
        put(76 + 4 * axis, &1f32.to_le_bytes());
    }
    put(108, &(VOXELS as f32).to_le_bytes());
    put(112, &1f32.to_le_bytes());
    // Millimetres; the identity as the voxels' place in space.
    put(123, &[2]);
    put(254, &1i16.to_le_bytes());
    for axis in 0..3 {
        put(280 + 20 * axis, &1f32.to_le_bytes());
    }
    put(344, b"n+1\0");
    file.write_all(&bytes)?;
    Ok(file.write_all(&raw)?)
}

#[cfg(test)]
#[path = "nifti_tests.rs"]
mod tests;
