//! The course's programs, on the simulated machine and, where that is Linux on x86-64, on the real one: they print the same lines.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod native {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{FromRawFd, IntoRawFd};
    use std::path::Path;

    use kernmm_programs::{Ring3, System};

    /// What the program prints under the running kernel, and its exit status, in a child whose folder this is.
    pub(super) fn run(name: &str, folder: &Path) -> (String, i32) {
        let mut ends = [0; 2];
        // SAFETY: there is room for two descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        let path = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the child calls nothing but the kernel: programs neither allocate nor lock.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let ring3 = Ring3::new();
            // SAFETY: calls of the kernel.
            let there = unsafe { libc::dup2(ends[1], 1) == 1 };
            // SAFETY: the path ends with 0.
            let there = there && unsafe { libc::chdir(path.as_ptr()) == 0 };
            let status = if there { kernmm_programs::run(&ring3, name).unwrap_or(127) } else { 126 };
            ring3.exit(status);
        }
        assert!(child > 0);
        // SAFETY: the descriptor is nobody else's.
        drop(unsafe { File::from_raw_fd(ends[1]) });
        // SAFETY: the descriptor is nobody else's.
        let mut out = unsafe { File::from_raw_fd(ends[0]) };
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        let _ = out.into_raw_fd();
        let mut status = 0;
        // SAFETY: there is room for the status.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(libc::WIFEXITED(status), "{name}: {status:#x}\n{text}");
        (text, libc::WEXITSTATUS(status))
    }
}

#[path = "../examples/common/elf.rs"]
mod elf;
#[path = "../examples/common/os/mod.rs"]
mod os;

use kernmm::memory::{Memory, SpinRwLock, Vm};
use kernmm::platform::hosted::{AccessedDirty, Disk, Latency, Machine, Mmu};
use kernmm::platform::{CpuId, Platform};
use kernmm::syscall::ElfMachine;
use kernmm::table::{EntryFormat, Pae, Sv39, X86_64};
use os::Os;

/// What the programs print, one after the other: recorded under Linux, by this test with `KERNMM_RECORD` set.
const LINES: &str = include_str!("golden/programs");

/// The lines of a program that are the same wherever and whenever it runs.
fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#')).collect()
}

/// The lines that a program is to print.
fn expected(name: &str) -> Vec<&str> {
    let own = |name| lines(LINES).into_iter().filter(move |line| line.starts_with(&format!("{name}: ")));
    match name {
        // Its child becomes that program.
        "exec_self" => own("page_size").chain(own(name)).collect(),
        _ => own(name).collect(),
    }
}

/// A folder that is gone with its guard.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(what: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("kernmm-{what}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// All programs but the one that becomes another: they are functions of this test here, and no file that could be executed.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn native_programs() -> impl Iterator<Item = &'static str> {
    kernmm_programs::NAMES.iter().copied().filter(|name| *name != "exec_self")
}

#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn the_running_kernel_prints_the_lines_that_were_recorded() {
    let folder = Folder::new("programs");
    if std::env::var_os("KERNMM_RECORD").is_some() {
        let texts = native_programs().map(|name| native::run(name, &folder.0).0);
        let not_recorded = lines(LINES).into_iter().filter(|line| line.starts_with("exec_self: "));
        let lines = texts
            .flat_map(|text| lines(&text).into_iter().map(|line| format!("{line}\n")).collect::<Vec<_>>())
            .chain(not_recorded.map(|line| format!("{line}\n")));
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/programs");
        std::fs::write(file, lines.collect::<String>()).unwrap();
        return;
    }
    for name in native_programs() {
        let (text, status) = native::run(name, &folder.0);
        assert_eq!((lines(&text), status), (expected(name), 0), "{name}");
    }
    let (text, _) = native::run("persistent", &folder.0);
    assert_eq!(lines(&text).last(), Some(&"persistent: this is run 2"));
    let left: Vec<_> = folder.0.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["variables"], "programs leave nothing else behind");
}

/// A system to run programs on.
struct Setting {
    mmu: Mmu,
    cpus: usize,
    latency: Latency,
    accessed_dirty: AccessedDirty,
}

impl Setting {
    fn new(mmu: Mmu) -> Self {
        Self { mmu, cpus: 2, latency: Latency::None, accessed_dirty: AccessedDirty::Hardware }
    }
}

/// Runs programs, in a format of page tables, and looks afterwards whether all frames are back.
fn on_system<F: EntryFormat>(setting: &Setting, test: impl FnOnce(&Os<'_, '_, '_, F>)) {
    let machine = Machine::pc(64 << 20).cpus(setting.cpus).mmu(setting.mmu);
    let machine = machine.accessed_dirty(setting.accessed_dirty).build().unwrap();
    let boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.set_latency(setting.latency);
    let vm: Vm<'_, _, F> = Vm::on(&memory).unwrap();
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let before = free();
    let os = Os::new(&vm, &disk, ElfMachine::X86_64);
    drop(boot);
    test(&os);
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    while vm.cache().reap(&memory) != 0 {
        machine.relax();
    }
    vm.assert_sound::<SpinRwLock>(&[]);
    assert_eq!(free(), before, "frames were lost");
    assert_eq!(vm.context().mms().used(), 0, "address spaces were lost");
    assert_eq!(vm.context().overcommit().committed(), 0, "memory is still promised");
    drop(os);
    // While the thread still has a CPU.
    drop(vm);
}

fn prints_what_linux_prints<F: EntryFormat>(setting: &Setting) {
    on_system::<F>(setting, |os| {
        for name in kernmm_programs::NAMES {
            let outcome = os.run(name);
            assert_eq!((lines(&outcome.text), outcome.status), (expected(name), 0), "{name}");
        }
        assert_eq!(lines(&os.run("persistent").text).last(), Some(&"persistent: this is run 2"));
    });
}

#[test]
fn the_simulated_machine_prints_the_same() {
    prints_what_linux_prints::<X86_64>(&Setting::new(Mmu::X86_64));
}

#[test]
fn one_cpu_is_enough() {
    prints_what_linux_prints::<X86_64>(&Setting { cpus: 1, ..Setting::new(Mmu::X86_64) });
}

#[test]
fn a_disk_that_takes_its_time_changes_nothing() {
    prints_what_linux_prints::<X86_64>(&Setting { latency: Latency::Polls(7), ..Setting::new(Mmu::X86_64) });
}

#[test]
fn page_tables_of_sv39_do_as_well() {
    prints_what_linux_prints::<Sv39>(&Setting::new(Mmu::Sv39));
}

#[test]
fn cpus_that_leave_it_to_the_kernel_to_note_uses_do_as_well() {
    let setting = Setting { accessed_dirty: AccessedDirty::Software, ..Setting::new(Mmu::Sv39) };
    prints_what_linux_prints::<Sv39>(&setting);
}

#[test]
fn page_tables_of_pae_do_as_well_with_three_gigabytes_of_addresses() {
    prints_what_linux_prints::<Pae>(&Setting::new(Mmu::Pae));
}
