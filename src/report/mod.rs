//! What `/proc` shows, byte for byte: rooms below return data, this one renders it.

mod maps;

pub use maps::{FileName, Label, Names, Resident, label, maps, maps_line, statm, status, vm_flags};
