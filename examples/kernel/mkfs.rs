//! Makes a disk image for the kernel, on the host: `mkfs IMAGE MEGABYTES FILE...`. Compiled by `qemu.sh`.

#[path = "src/layout.rs"]
#[expect(dead_code, reason = "the host only writes")]
mod layout;

use std::error::Error;
use std::fs;
use std::path::Path;

use layout::{BLOCK, DATA, ENTRY, FILES, Inode, MAGIC};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let image = arguments.next().ok_or("no image")?;
    let blocks = arguments.next().ok_or("no size")?.parse::<usize>()? * (1 << 20) / BLOCK;
    let mut disk = vec![0; blocks * BLOCK];
    disk[..8].copy_from_slice(&MAGIC.to_le_bytes());
    disk[8..16].copy_from_slice(&(blocks as u64).to_le_bytes());
    let mut next = DATA;
    for (number, path) in arguments.enumerate() {
        if number == FILES {
            return Err("too many files".into());
        }
        let name =
            Path::new(&path).file_name().and_then(|name| name.to_str()).ok_or("a file without a name")?;
        let bytes = fs::read(&path)?;
        let mut inode = Inode { name: Inode::name_of(name).ok_or("a name too long")?, ..Inode::NONE };
        inode.size = bytes.len() as u64;
        for page in 0..bytes.len().div_ceil(BLOCK) as u32 {
            inode.add(page, next + page);
        }
        let at = next as usize * BLOCK;
        disk.get_mut(at..at + bytes.len()).ok_or("the image is too small")?.copy_from_slice(&bytes);
        next += bytes.len().div_ceil(BLOCK) as u32;
        let place = BLOCK * layout::DIRECTORY as usize + number * ENTRY;
        disk[place..place + ENTRY].copy_from_slice(&inode.to_bytes());
    }
    fs::write(image, disk)?;
    Ok(())
}
