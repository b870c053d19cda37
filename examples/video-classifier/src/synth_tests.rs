//! Tests of the made data set: the ordinary reader reads what was written.

use super::*;
use crate::data::{ClipShape, read_clip, scan};

#[test]
fn the_written_set_is_read_back_by_the_ordinary_reader() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("shapes");
    make_data(&dir).unwrap();
    let folder = scan(&dir).unwrap();
    assert_eq!(folder.classes, MOTIONS.map(|(name, _)| name));
    assert_eq!((folder.train.len(), folder.test.len()), (480, 160));
    for clip in folder.train.iter().step_by(97) {
        let bytes = read_clip(&clip.path, ClipShape { frames: FRAMES, size: SIZE as usize }).unwrap();
        let frame = bytes.len() / FRAMES;
        assert_ne!(bytes[..frame], bytes[frame..2 * frame], "{} does not move", clip.path.display());
    }

    // The same again: kept when whole, refused when something else is there, equal when written anew.
    let file = Path::new("test/left/003/05.png");
    let before = std::fs::read(dir.join(file)).unwrap();
    make_data(&dir).unwrap();
    let copy = root.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    make_data(&copy).unwrap();
    assert_eq!(std::fs::read(copy.join(file)).unwrap(), before);
    std::fs::remove_file(copy.join(run_folder::MARKER)).unwrap();
    let error = make_data(&copy).unwrap_err().to_string();
    assert!(error.contains("copy is not an empty folder"), "{error}");
    assert!(!root.path().join("copy.partial").exists());
}
