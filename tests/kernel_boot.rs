//! Builds `examples/kernel` and boots it in QEMU: 1 and 2 CPUs, 1 and 2 nodes, little and much RAM.
//!
//! Each boot takes less than a second; `TIMEOUT` bounds one that hangs. Without QEMU the kernel is only built (that alone shows that
//! the library needs no `std`), and the tests say what to install.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod boot {
    use std::env;
    use std::io::{Write, stderr};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::OnceLock;

    /// Seconds until a boot counts as hung.
    const TIMEOUT: &str = "120";

    /// How to boot.
    #[derive(Clone, Copy, Debug)]
    struct Machine {
        cpus: u32,
        nodes: u32,
        memory: &'static str,
        append: &'static str,
    }

    /// A boot that is over: the runner's exit status and the serial log.
    struct Ended {
        status: i32,
        log: String,
    }

    impl Ended {
        #[track_caller]
        fn assert_has(&self, line: &str) {
            assert!(self.log.lines().any(|found| found == line), "no line {line:?} in:\n{}", self.log);
        }

        fn count(&self, part: &str) -> usize {
            self.log.lines().filter(|line| line.contains(part)).count()
        }
    }

    /// Builds the kernel once and boots it; `None` if there is no QEMU.
    fn run(machine: Machine) -> Option<Ended> {
        let kernel = kernel();
        if !has_qemu() {
            // Written past the test harness, which swallows what a passing test prints.
            let _ = writeln!(
                stderr(),
                "skipped {machine:?}: qemu-system-x86_64 is missing; \
                 on Debian: apt-get install --no-install-recommends qemu-system-x86"
            );
            return None;
        }
        let output = Command::new(folder().join("qemu.sh"))
            .arg(kernel)
            .args(["--cpus", &machine.cpus.to_string(), "--nodes", &machine.nodes.to_string()])
            .args(["--memory", machine.memory, "--append", machine.append])
            .env("TIMEOUT", TIMEOUT)
            .output()
            .expect("examples/kernel/qemu.sh can be run");
        let status = output.status.code().expect("the runner ends by itself");
        let log =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Some(Ended { status, log })
    }

    fn folder() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/kernel"))
    }

    fn has_qemu() -> bool {
        Command::new("qemu-system-x86_64").arg("--version").output().is_ok()
    }

    /// The kernel's file, built by the first test that needs it.
    fn kernel() -> &'static Path {
        static KERNEL: OnceLock<PathBuf> = OnceLock::new();
        KERNEL.get_or_init(|| {
            let target = folder().join("target");
            let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            build.args(["build", "--release", "--locked", "--target-dir"]).arg(&target).current_dir(folder());
            // The kernel's flags are in its own .cargo/config.toml; those of this test run would replace them.
            for name in [
                "RUSTFLAGS",
                "CARGO_ENCODED_RUSTFLAGS",
                "CARGO_BUILD_RUSTFLAGS",
                "CARGO_BUILD_TARGET",
                "CARGO_BUILD_TARGET_DIR",
                "CARGO_TARGET_DIR",
                "RUSTC_WORKSPACE_WRAPPER",
            ] {
                build.env_remove(name);
            }
            let output = build.output().expect("cargo can be run");
            assert!(
                output.status.success(),
                "the build failed:\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
            target.join("x86_64-unknown-linux-gnu/release/kernel")
        })
    }

    #[test]
    fn boots_with_one_and_two_cpus_and_nodes() {
        for (cpus, nodes) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            let Some(ended) = run(Machine { cpus, nodes, memory: "256M", append: "" }) else { return };
            assert_eq!(ended.status, 0, "{cpus} CPUs, {nodes} nodes:\n{}", ended.log);
            ended.assert_has("done");
            ended.assert_has("cpu 0: APIC id 0, node 0");
            assert_eq!(ended.count("APIC id"), cpus as usize);
            assert_eq!(ended.count("handled a kick from CPU 0"), cpus as usize - 1);
            assert_eq!(ended.count("blocks allocated, filled and freed"), cpus as usize);
            assert_eq!(ended.count("texts in a tree, as many exchanged"), cpus as usize);
            assert_eq!(ended.count("pages when kicked"), cpus as usize - 1);
            ended.assert_has("all frames are back");
            assert_eq!(ended.count("zone   Normal"), nodes as usize, "one line of buddyinfo a node");
            if cpus == 2 {
                ended.assert_has(&format!("cpu 1: APIC id 1, node {}", nodes - 1));
            }
            if nodes == 2 {
                ended.assert_has("acpi: node 0: [mem 0x0000000000100000-0x0000000007ffffff]");
                ended.assert_has("acpi: node 1: [mem 0x0000000008000000-0x000000000fffffff]");
                ended.assert_has("acpi: distances of node 1: 21 10");
            } else {
                ended.assert_has("acpi: distances of node 0: 10");
            }
        }
    }

    #[test]
    fn boots_with_ram_above_4_gib() {
        let Some(ended) = run(Machine { cpus: 2, nodes: 2, memory: "6G", append: "" }) else { return };
        assert_eq!(ended.status, 0, "{}", ended.log);
        ended.assert_has("pvh: [mem 0x0000000100000000-0x00000001bfffffff] usable");
        assert_eq!(ended.count("Node 1, zone   Normal"), 1, "{}", ended.log);
        ended.assert_has("all frames are back");
        ended.assert_has("done");
    }

    #[test]
    fn boots_with_24_mib() {
        let Some(ended) = run(Machine { cpus: 2, nodes: 1, memory: "24M", append: "" }) else { return };
        assert_eq!(ended.status, 0, "{}", ended.log);
        ended.assert_has("all frames are back");
        ended.assert_has("done");
    }

    #[test]
    fn a_panic_ends_the_run_with_another_status() {
        let Some(ended) = run(Machine { cpus: 2, nodes: 1, memory: "256M", append: "panic" }) else { return };
        assert_eq!(ended.status, 35, "{}", ended.log);
        ended.assert_has("asked for on the command line");
        assert_eq!(ended.count("done"), 0);
    }

    #[test]
    fn a_fault_in_the_kernel_is_reported_with_its_address() {
        let Some(ended) = run(Machine { cpus: 1, nodes: 1, memory: "256M", append: "fault" }) else { return };
        assert_eq!(ended.status, 35, "{}", ended.log);
        assert_eq!(ended.count("page fault at address 0xffffa88000000000, error 0x2"), 1, "{}", ended.log);
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[test]
fn the_kernel_is_built_on_x86_64_linux_only() {
    use std::io::{Write, stderr};
    let _ = writeln!(
        stderr(),
        "skipped: examples/kernel is built with the host's target, which must be x86-64 Linux"
    );
}
