//! Reading recordings of page allocations.

use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read};
use std::path::Path;

use kernmm::flags::GfpFlags;

/// An allocation or a free, as it was recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// Pages were allocated.
    Alloc { cpu: u32, pfn: u64, order: u8, gfp: GfpFlags },
    /// Pages were freed.
    Free { cpu: u32, pfn: u64, order: u8 },
    /// Pages were freed that were allocated before the recording began, or as part of a larger block.
    FreeOther { cpu: u32, pfn: u64, order: u8 },
}

/// The recorded events of one workload.
#[derive(Debug)]
pub(crate) struct Recording {
    /// The file's name.
    pub(crate) name: String,
    /// How many CPUs there were.
    pub(crate) cpus: u32,
    /// What happened, in order.
    pub(crate) events: Vec<Event>,
}

impl Recording {
    /// Reads a file, packed by gzip if its name ends so.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let file = File::open(path)
            .map_err(|error| Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let text: Box<dyn Read> = match path.extension() {
            Some(extension) if extension == "gz" => Box::new(flate2::read::GzDecoder::new(file)),
            _ => Box::new(file),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut recording = Self { name, cpus: 1, events: Vec::new() };
        let mut masks = Vec::new();
        for (number, line) in BufReader::new(text).lines().enumerate() {
            let line = line?;
            let fields: Vec<&str> = line.split(' ').collect();
            recording.take_line(&fields, &mut masks).ok_or_else(|| {
                let what = format!("{}:{}: cannot read `{line}`", path.display(), number + 1);
                Error::new(ErrorKind::InvalidData, what)
            })?;
        }
        Ok(recording)
    }

    fn take_line(&mut self, fields: &[&str], masks: &mut Vec<GfpFlags>) -> Option<()> {
        let hex = |at: usize| u64::from_str_radix(fields.get(at)?, 16).ok();
        let number = |at: usize| fields.get(at)?.parse::<u32>().ok();
        let order = |at: usize| fields.get(at)?.parse::<u8>().ok().filter(|&order| order <= 10);
        match *fields.first()? {
            "H" if fields.get(1) == Some(&"cpus") => self.cpus = number(2)?,
            "G" => masks.push(gfp_of(fields.get(3)?)),
            "a" => {
                let gfp = *masks.get(number(4)? as usize)?;
                self.events.push(Event::Alloc { cpu: number(1)?, pfn: hex(2)?, order: order(3)?, gfp });
            }
            "f" => self.events.push(Event::Free { cpu: number(1)?, pfn: hex(2)?, order: order(3)? }),
            "u" => self.events.push(Event::FreeOther { cpu: number(1)?, pfn: hex(2)?, order: order(3)? }),
            // What the recorded kernel did below its interface, and what it printed before and after.
            "H" | "B" | "x" | "z" | "d" | "e" => {}
            _ => return None,
        }
        Some(())
    }
}

/// The flags that a recorded mask names, as far as they concern the allocator.
fn gfp_of(names: &str) -> GfpFlags {
    names.split('|').fold(GfpFlags::empty(), |flags, name| {
        flags
            | match name {
                "GFP_KERNEL" | "GFP_KERNEL_ACCOUNT" => GfpFlags::KERNEL,
                "GFP_USER" => GfpFlags::USER,
                "GFP_HIGHUSER" => GfpFlags::HIGHUSER,
                "GFP_HIGHUSER_MOVABLE" => GfpFlags::HIGHUSER_MOVABLE,
                "GFP_TRANSHUGE" => GfpFlags::HIGHUSER_MOVABLE | GfpFlags::COMP | GfpFlags::NOMEMALLOC,
                "GFP_TRANSHUGE_LIGHT" => {
                    (GfpFlags::HIGHUSER_MOVABLE - GfpFlags::RECLAIM) | GfpFlags::COMP | GfpFlags::NOMEMALLOC
                }
                "GFP_NOFS" => GfpFlags::NOFS,
                "GFP_NOIO" => GfpFlags::NOIO,
                "GFP_ATOMIC" => GfpFlags::ATOMIC,
                "GFP_NOWAIT" => GfpFlags::NOWAIT,
                "__GFP_HIGHMEM" => GfpFlags::HIGHMEM,
                "__GFP_MOVABLE" => GfpFlags::MOVABLE,
                "__GFP_RECLAIMABLE" => GfpFlags::RECLAIMABLE,
                "__GFP_HIGH" => GfpFlags::HIGH,
                "__GFP_IO" => GfpFlags::IO,
                "__GFP_FS" => GfpFlags::FS,
                "__GFP_DIRECT_RECLAIM" => GfpFlags::DIRECT_RECLAIM,
                "__GFP_KSWAPD_RECLAIM" => GfpFlags::KSWAPD_RECLAIM,
                "__GFP_NORETRY" => GfpFlags::NORETRY,
                "__GFP_NOFAIL" => GfpFlags::NOFAIL,
                "__GFP_MEMALLOC" => GfpFlags::MEMALLOC,
                "__GFP_NOMEMALLOC" => GfpFlags::NOMEMALLOC,
                "__GFP_COMP" => GfpFlags::COMP,
                "__GFP_THISNODE" => GfpFlags::THISNODE,
                // Zeroing, accounting, warnings and placement hints do not change which frames are given.
                _ => GfpFlags::empty(),
            }
    })
}
