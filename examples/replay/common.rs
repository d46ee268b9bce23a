//! What both replays share: reading recordings, and lines as `/proc/PID/maps` has them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use kernmm::flags::{VM_FLAG_CODES, VmFlags};
use kernmm::mm::{Backing, FileKind, Vma};

/// The lines of a file, gzipped or not.
pub(crate) fn lines(path: &str) -> Result<impl Iterator<Item = String> + use<>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let gzipped = Path::new(path).extension().is_some_and(|ext| ext == "gz");
    let reader: Box<dyn Read> =
        if gzipped { Box::new(flate2::read::GzDecoder::new(file)) } else { Box::new(file) };
    Ok(BufReader::new(reader).lines().map_while(Result::ok))
}

/// A hexadecimal number.
pub(crate) fn hex(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| format!("not a hexadecimal number: {text}"))
}

/// The flags that two-letter codes, joined by commas, stand for.
pub(crate) fn vm_flags(codes: &str) -> Result<VmFlags, String> {
    codes.split(',').filter(|code| !code.is_empty()).try_fold(VmFlags::empty(), |flags, code| {
        let known = VM_FLAG_CODES.iter().find(|(_, name)| *name == code);
        known.map(|(flag, _)| flags | *flag).ok_or(format!("unknown flag {code}"))
    })
}

/// The two-letter codes of flags, joined by commas.
pub(crate) fn codes(flags: VmFlags) -> String {
    let names: Vec<&str> =
        VM_FLAG_CODES.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| *name).collect();
    names.join(",")
}

/// The protection as `/proc/PID/maps` prints it.
pub(crate) fn prot(flags: VmFlags) -> String {
    let letter = |flag, letter, none| if flags.contains(flag) { letter } else { none };
    [
        letter(VmFlags::READ, 'r', '-'),
        letter(VmFlags::WRITE, 'w', '-'),
        letter(VmFlags::EXEC, 'x', '-'),
        letter(VmFlags::MAYSHARE, 's', 'p'),
    ]
    .iter()
    .collect()
}

/// The page offset as `/proc/PID/maps` prints it: 0 without a file.
pub(crate) fn shown_pgoff(vma: &Vma) -> u64 {
    match vma.backing {
        Backing::File(_) => vma.pgoff.get(),
        Backing::Anonymous | Backing::Special(_) | Backing::Device(_) => 0,
    }
}

/// Names of the objects behind shared anonymous mappings: those of the recording for ours, learnt at first sight.
#[derive(Clone, Default)]
pub(crate) struct ObjectNames(Vec<(u32, String)>);

impl ObjectNames {
    /// Whether `name` is the recording's name for the file behind `backing`, which is called `own` if it is no object.
    pub(crate) fn agree(&mut self, backing: Backing, own: &str, name: &str) -> bool {
        let Backing::File(file) = backing else { return name == "-" };
        if file.kind != FileKind::SharedAnonymous {
            return own == name;
        }
        let number = file.file.0.get();
        match self.0.iter().find(|(ours, theirs)| *ours == number || theirs == name) {
            Some((ours, theirs)) => *ours == number && theirs == name,
            None => {
                self.0.push((number, name.to_owned()));
                true
            }
        }
    }
}
