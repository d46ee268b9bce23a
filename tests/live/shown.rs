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
