//! Tests of reading and writing NIfTI-1.

use super::*;
use std::path::PathBuf;

/// A header in either byte order, of 4 x 3 x 2 voxels of a type.
fn header(big: bool, code: i16, slope: [f32; 2], offset: f32) -> Vec<u8> {
    let mut bytes = vec![0; offset as usize];
    let mut put = |offset: usize, little: &[u8]| {
        let mut number = little.to_vec();
        if big {
            number.reverse();
        }
        bytes[offset..offset + number.len()].copy_from_slice(&number);
    };
    put(0, &348i32.to_le_bytes());
    for (axis, extent) in [4i16, 4, 3, 2, 1].into_iter().enumerate() {
        put(40 + 2 * axis, &extent.to_le_bytes());
    }
    put(70, &code.to_le_bytes());
    put(108, &offset.to_le_bytes());
    put(112, &slope[0].to_le_bytes());
    put(116, &slope[1].to_le_bytes());
    bytes[344..348].copy_from_slice(b"n+1\0");
    bytes
}

struct Place {
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        Self { _dir: dir, file }
    }

    fn refused(&self, bytes: &[u8], sentence: &str) {
        std::fs::write(&self.file, bytes).unwrap();
        let error = format!("{:#}", read("image", &self.file).unwrap_err());
        assert!(error.starts_with("image /") && error.contains("v.nii cannot be read: "), "{error}");
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let shape = [2, 3, 4];
    let values: Vec<i16> = (0..24).map(|i| 1000 * i - 12_000).collect();
    let bytes: Vec<u8> = (0..24).map(|i| 10 * i).collect();
    for name in ["v.nii", "v.nii.gz"] {
        let place = Place::new(name);
        write(&place.file, shape, Voxels::I16(&values)).unwrap();
        let found = read("image", &place.file).unwrap();
        assert_eq!(found.shape, shape);
        assert_eq!(found.values, values.iter().map(|&v| f32::from(v)).collect::<Vec<_>>());
        write(&place.file, shape, Voxels::U8(&bytes)).unwrap();
        let found = read("label", &place.file).unwrap();
        assert_eq!(found.values, bytes.iter().map(|&v| f32::from(v)).collect::<Vec<_>>());
    }
    let place = Place::new("v.nii");
    assert!(write(&place.file, [2, 3, 3], Voxels::U8(&bytes)).is_err());
}

#[test]
fn every_type_is_read_in_both_byte_orders() {
    /// How a number is written, little end first.
    type Bytes = fn(f64) -> Vec<u8>;
    let types: [(i16, Bytes); 10] = [
        (2, |v| (v as u8).to_le_bytes().to_vec()),
        (4, |v| (v as i16).to_le_bytes().to_vec()),
        (8, |v| (v as i32).to_le_bytes().to_vec()),
        (16, |v| (v as f32).to_le_bytes().to_vec()),
        (64, |v| v.to_le_bytes().to_vec()),
        (256, |v| (v as i8).to_le_bytes().to_vec()),
        (512, |v| (v as u16).to_le_bytes().to_vec()),
        (768, |v| (v as u32).to_le_bytes().to_vec()),
        (1024, |v| (v as i64).to_le_bytes().to_vec()),
        (1280, |v| (v as u64).to_le_bytes().to_vec()),
    ];
    let place = Place::new("v.nii");
    for (code, bytes) in types {
        for big in [false, true] {
            // An extension of 16 bytes is between header and voxels.
            let mut file = header(big, code, [0.0, 7.0], 368.0);
            for voxel in 0..24 {
                let mut voxel = bytes(f64::from(voxel));
                if big {
                    voxel.reverse();
                }
                file.extend(voxel);
            }
            std::fs::write(&place.file, file).unwrap();
            let found = read("image", &place.file).unwrap();
            assert_eq!(found.shape, [2, 3, 4]);
            assert_eq!(found.values, (0..24).map(|v| v as f32).collect::<Vec<_>>(), "type {code}, big {big}");
        }
    }
}

#[test]
fn values_are_scaled_as_the_header_says() {
    let place = Place::new("v.nii");
    for (slope, expected) in [([0.5, -1.0], 9.0), ([0.0, 5.0], 20.0), ([f32::NAN, 5.0], 20.0)] {
        let mut file = header(false, 2, slope, 352.0);
        file.extend([20; 24]);
        std::fs::write(&place.file, file).unwrap();
        assert_eq!(read("image", &place.file).unwrap().values, [expected; 24]);
    }
}

#[test]
fn what_is_no_volume_is_refused_with_the_reason() {
    let place = Place::new("v.nii");
    let error = format!("{:#}", read("image", &place.file).unwrap_err());
    assert!(error.contains("v.nii cannot be read: No such file"), "{error}");
    place.refused(b"", "it is no NIfTI-1 file: it ends within the header");
    place.refused(&[7; 400], "it is no NIfTI-1 file");
    place.refused(&[0x1f, 0x8b, 0, 0], "");
    let good = header(false, 2, [1.0, 0.0], 352.0);
    place.refused(&good, "it ends after 0 of 24 bytes of voxels");
    let with = |offset: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file.extend([1; 24]);
        file
    };
    place.refused(&with(0, &540i32.to_le_bytes()), "it is a NIfTI-2 file");
    place.refused(&with(0, &540i32.to_be_bytes()), "it is a NIfTI-2 file");
    place.refused(&with(344, b"ni1\0"), "its voxels are in a file of their own");
    place.refused(&with(40, &9i16.to_le_bytes()), "it has 9 axes");
    place.refused(&with(40, &2i16.to_le_bytes()), "its axes have [4, 3] elements");
    place.refused(&with(48, &3i16.to_le_bytes()), "its axes have [4, 3, 2, 3] elements");
    place.refused(&with(44, &(-1i16).to_le_bytes()), "its axes have [4, -1, 2, 1] elements");
    place.refused(&with(70, &128i16.to_le_bytes()), "its voxels are of type 128");
    place.refused(&with(108, &f32::NAN.to_le_bytes()), "its voxels begin at byte NaN");
    for axis in [42, 44, 46] {
        place.refused(&with(axis, &i16::MAX.to_le_bytes()), "it ends after 24 of");
    }
    let mut large = with(42, &i16::MAX.to_le_bytes());
    large[44..46].copy_from_slice(&i16::MAX.to_le_bytes());
    large[46..48].copy_from_slice(&i16::MAX.to_le_bytes());
    place.refused(&large, "bytes, at most");
}
