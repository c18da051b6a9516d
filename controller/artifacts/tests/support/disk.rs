//! Layers as a real disk.

use std::io::Cursor;

use vmlet_artifacts::layers::apply::{Input, flatten};
use vmlet_artifacts::layers::disk::DiskStore;
use vmlet_artifacts::types::Limits;
use vmlet_ext4::{FreeSpace, Options, Size, Writer};

/// Writes a disk as small as it can be; gives its error, or checks it.
pub fn on_disk(layers: Vec<Vec<u8>>) -> Result<tempfile::NamedTempFile, String> {
    let free = FreeSpace { percent: 0, bytes: 0 };
    on_disk_of(Size::Auto { free }, layers)
}

/// The same of some size.
pub fn on_disk_of(size: Size, layers: Vec<Vec<u8>>) -> Result<tempfile::NamedTempFile, String> {
    on_disk_within(&Limits::default(), size, layers)
}

/// The same within bounds. An error begins with the number of the layer, if it is that of one.
pub fn on_disk_within(limits: &Limits, size: Size, layers: Vec<Vec<u8>>) -> Result<tempfile::NamedTempFile, String> {
    let place = tempfile::NamedTempFile::new().unwrap();
    let options = Options::new([1; 16], [2; 16], size);
    let writer = Writer::create(place.reopen().unwrap(), options).unwrap();
    let mut store = DiskStore::new(writer);
    let input = |bytes| Input {
        bytes: Box::new(Cursor::new(bytes)),
        diff_id: None,
    };
    let layers = layers.into_iter().map(input).collect();
    let tree = flatten(layers, &mut store, limits, &Default::default(), &|| ());
    let tree = tree.map_err(|(at, error)| format!("layer {}: {error}", at + 1))?;
    store
        .finish(tree, &Default::default())
        .map_err(|error| error.to_string())?;
    super::check(place.path());
    Ok(place)
}
