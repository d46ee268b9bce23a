//! How `/proc/PID/maps` and `smaps` show a VMA.

use kernmm::flags::{VM_FLAG_CODES, VmFlags};

/// `rwxp`.
pub(crate) fn perms(flags: VmFlags) -> String {
    let letter = |flag, letter, none| if flags.contains(flag) { letter } else { none };
    let letters = [
        letter(VmFlags::READ, 'r', '-'),
        letter(VmFlags::WRITE, 'w', '-'),
        letter(VmFlags::EXEC, 'x', '-'),
        letter(VmFlags::MAYSHARE, 's', 'p'),
    ];
    letters.iter().collect()
}

/// What stands behind `VmFlags:`, without the blank at its end.
pub(crate) fn codes(flags: VmFlags) -> String {
    let codes = VM_FLAG_CODES.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, code)| *code);
    codes.collect::<Vec<_>>().join(" ")
}

/// What the running kernel says behind `VmFlags:`, without what is not tracked here: `sd`, which each new VMA has on kernels with `CONFIG_MEM_SOFT_DIRTY`.
pub(crate) fn told(codes: &str) -> String {
    codes.split_whitespace().filter(|&code| code != "sd").collect::<Vec<_>>().join(" ")
}

#[test]
fn soft_dirty_is_not_compared() {
    assert_eq!(told("rd wr mr mw me sd "), codes(VmFlags::READ | VmFlags::WRITE | VmFlags::MAY_ACCESS));
}
