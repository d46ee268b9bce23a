//! Builds `examples/kernel` and boots it in QEMU: 1 and 2 CPUs, 1 and 2 nodes, little and much RAM.
//!
//! Each boot runs the programs of `examples/programs`, which print what they print under Linux, and programs that try the kernel hard; it takes some seconds, and `TIMEOUT` bounds one that hangs. Without QEMU the kernel is only built (that alone shows that
//! the library needs no `std`), and the tests say what to install.

#[path = "common/skip.rs"]
mod skip;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod boot {
    use std::env;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::OnceLock;

    /// Seconds that a boot may take; the environment may allow more, where the machine has other things to do.
    const TIMEOUT: &str = "60";

    /// How to boot.
    #[derive(Clone, Copy, Debug)]
    struct Machine<'a> {
        cpus: u32,
        nodes: u32,
        memory: &'static str,
        append: &'static str,
        disk: Option<&'a Path>,
        /// Instructions are counted, and the time-stamp counter tells how many: one CPU.
        counted: Counted,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Counted {
        No,
        Instructions,
    }

    const MACHINE: Machine<'static> =
        Machine { cpus: 2, nodes: 1, memory: "256M", append: "", disk: None, counted: Counted::No };

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

        /// The lines that a program printed, but for those that tell times and sizes.
        fn lines_of(&self, name: &str) -> Vec<&str> {
            let own = format!("{name}: ");
            self.log.lines().filter(|line| line.starts_with(&own)).collect()
        }

        /// The numbers in the line that begins like this, after that.
        #[track_caller]
        fn numbers(&self, start: &str) -> Vec<u64> {
            let line = self.log.lines().find_map(|line| line.strip_prefix(start));
            let line = line.unwrap_or_else(|| panic!("no line {start:?} in:\n{}", self.log));
            line.split(|char: char| !char.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
        }

        /// The value of a line that is a name and a number: a row of vmstat or meminfo.
        #[track_caller]
        fn value(&self, name: &str) -> u64 {
            let rows = self.log.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let found =
                rows.filter(|row| row.first() == Some(&name)).find_map(|row| row.get(1)?.parse().ok());
            found.unwrap_or_else(|| panic!("no value of {name:?} in:\n{}", self.log))
        }

        /// Whether the kernel ended well, and gave all frames back.
        #[track_caller]
        fn assert_well(&self) {
            assert_eq!(self.status, 0, "{}", self.log);
            self.assert_has("all frames are back");
            self.assert_has("init: every frame is back");
            self.assert_has("done");
        }

        /// Whether all programs ran to their end with the lines that they print under Linux, but for those that ran out of memory and were
        /// reported so.
        #[track_caller]
        fn assert_programs(&self) {
            for name in kernmm_programs::NAMES {
                self.assert_has(&format!("init: {name} exited with 0"));
                let prefix = format!("{name}: ");
                let expected: Vec<&str> = LINES.lines().filter(|line| line.starts_with(&prefix)).collect();
                // exec_self runs this one a second time.
                let times = if *name == "page_size" { 2 } else { 1 };
                assert_eq!(self.lines_of(name), expected.repeat(times), "{}", self.log);
            }
            for (name, lines) in HARD {
                assert_eq!(self.lines_of(name), *lines, "{}", self.log);
                self.assert_has(&format!("init: {name} exited with 0"));
            }
            assert_eq!(self.count("Out of memory: Killed process"), 1, "{}", self.log);
        }
    }

    /// What the course's programs print under Linux.
    const LINES: &str = include_str!("golden/programs");

    /// What the kernel's own programs print.
    const HARD: &[(&str, &[&str])] = &[
        (
            "demand",
            &["demand: four of 524288 words sum to 0xc0e992d5", "demand: most of it was never read: true"],
        ),
        ("shoot_down", &["shoot_down: 40 pages replaced, and no old one seen"]),
        ("stress", &["stress: the process that took all memory was killed, its parent is whole"]),
    ];

    /// The afternoon guide.
    const README: &str = include_str!("../examples/kernel/README.md");

    /// Builds the kernel once and boots it; `None` if there is no QEMU.
    fn run(machine: Machine<'_>) -> Option<Ended> {
        let kernel = kernel();
        if !has_qemu() {
            super::skip::skip(
                "qemu-system-x86_64 is missing; \
                 on Debian: apt-get install --no-install-recommends qemu-system-x86",
            );
            return None;
        }
        let mut runner = Command::new(folder().join("qemu.sh"));
        runner
            .arg(kernel)
            .args(["--cpus", &machine.cpus.to_string(), "--nodes", &machine.nodes.to_string()])
            .args(["--memory", machine.memory, "--append", machine.append])
            .env("PROGRAMS_ARE_BUILT", "1")
            .env("TIMEOUT", env::var("TIMEOUT").as_deref().unwrap_or(TIMEOUT));
        if let Some(disk) = machine.disk {
            runner.arg("--disk").arg(disk);
        }
        if machine.counted == Counted::Instructions {
            runner.args(["-icount", "shift=0"]);
        }
        let output = runner.output().expect("examples/kernel/qemu.sh can be run");
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
            let Some(ended) = run(Machine { cpus, nodes, ..MACHINE }) else { return };
            ended.assert_well();
            ended.assert_programs();
            ended.assert_has("cpu 0: APIC id 0, node 0");
            assert_eq!(ended.count("APIC id"), cpus as usize);
            assert_eq!(ended.count("handled a kick from CPU 0"), cpus as usize - 1);
            assert_eq!(ended.count("blocks allocated, filled and freed"), cpus as usize);
            assert_eq!(ended.count("texts in a tree, as many exchanged"), cpus as usize);
            assert_eq!(ended.count("pages when kicked"), cpus as usize - 1);
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
            for report in ["buddyinfo", "zoneinfo", "vmstat", "meminfo", "maps of the last program"] {
                ended.assert_has(&format!("---- {report}"));
            }
            assert_eq!(ended.count("zone   Normal"), 3 * nodes as usize, "buddyinfo twice, and zoneinfo");
            assert_eq!(ended.count("[stack]"), 1);
            let (faults, major) = (ended.value("pgfault"), ended.value("pgmajfault"));
            assert!(major >= 3 && faults > 10 * major, "{faults} faults, {major} of them major");
            let [total, free] = ["MemTotal:", "MemFree:"].map(|name| ended.value(name));
            assert!(total < 256 << 10 && free < total && free > total / 2, "{free} of {total} kB free");
            assert_eq!(ended.value("AnonPages:"), 0, "no process is left");
            assert!(ended.value("Slab:") > 0, "the heap of the kernel");
        }
    }

    #[test]
    fn a_program_is_read_from_the_disk_page_by_page_as_it_is_touched() {
        let Some(ended) = run(Machine { append: "run=demand", ..MACHINE }) else { return };
        ended.assert_well();
        let costs = ended
            .log
            .lines()
            .find(|line| line.starts_with("# demand["))
            .expect("the kernel says what it cost");
        let numbers: Vec<u64> = costs.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [_, major, resident, mapped] = numbers[..] else { panic!("{costs}") };
        assert!(major >= 3 && resident < mapped / 4 && mapped > 512, "{costs}");
    }

    #[test]
    fn two_threads_of_a_process_fault_on_two_cpus_and_make_each_other_forget() {
        // A busy host may run one CPU after the other.
        for _ in 0..5 {
            let Some(ended) = run(Machine { append: "run=both_cpus", ..MACHINE }) else { return };
            ended.assert_well();
            // Faults of the first CPU, of the second, shoot-downs.
            let shared = ended.numbers("# of both_cpus: faults by CPU ");
            assert_eq!(shared.len(), 3, "{shared:?}");
            if shared.iter().all(|&number| number > 0) {
                return;
            }
        }
        panic!("never on both CPUs");
    }

    #[test]
    fn a_variable_in_a_file_survives_the_next_boot() {
        let disk = env::temp_dir().join(format!("kernmm-disk-{}", std::process::id()));
        let _ = std::fs::remove_file(&disk);
        for number in 1..=3 {
            let machine = Machine { append: "run=persistent", disk: Some(&disk), cpus: 1, ..MACHINE };
            let Some(ended) = run(machine) else { return };
            ended.assert_well();
            ended.assert_has(&format!("persistent: this is run {number}"));
        }
        std::fs::remove_file(&disk).expect("the runner made it");
    }

    #[test]
    fn without_shoot_downs_the_other_cpu_sees_a_page_that_is_gone() {
        // A busy host may run one CPU after the other: then what one remembers is forgotten by the time that the other has changed it.
        for _ in 0..5 {
            let Some(ended) = run(Machine { append: "no-shootdown run=shoot_down", ..MACHINE }) else {
                return;
            };
            ended.assert_has("# 0 TLB shoot-downs");
            if ended.count("shoot_down: old pages were seen") > 0 {
                ended.assert_has("init: shoot_down exited with 1");
                assert_eq!(ended.status, 37, "a program failed");
                return;
            }
        }
        panic!("no old page was ever seen");
    }

    #[test]
    fn what_calls_and_faults_cost_does_not_grow_with_vmas_or_ram() {
        let [small, large] = ["256M", "1G"].map(|memory| {
            let machine =
                Machine { cpus: 1, memory, append: "run=cost", counted: Counted::Instructions, ..MACHINE };
            let ended = run(machine)?;
            ended.assert_well();
            let costs = ["0", "90", "890"].map(|vmas| ended.numbers(&format!("# cost: {vmas} more VMAs: ")));
            let [few, _, many] = &costs;
            // First touch, mmap, munmap; then fork, which copies VMAs.
            for (few, many) in few.iter().zip(many).take(3) {
                assert!(many * 2 < few * 3, "890 VMAs more: {costs:?}");
            }
            let a_vma = (many[3] - few[3]) / 890;
            assert!(a_vma < 2500, "fork of a VMA takes {a_vma} instructions: {costs:?}");
            let [little, much] =
                ["256", "1024"].map(|pages| ended.numbers(&format!("# cost: {pages} pages more: ")));
            let a_page = (much[0] - little[0]) / 768;
            assert!(a_page < 300, "fork of a page takes {a_page} instructions");
            Some(costs)
        });
        let (Some(small), Some(large)) = (small, large) else { return };
        for (small, large) in small.iter().flatten().zip(large.iter().flatten()) {
            assert!(is_near(*large, *small), "with 1 GiB {large} instructions, with 256 MiB {small}");
        }
        let told = told_costs();
        for (measured, column) in small.iter().zip(0..) {
            let told: Vec<u64> = told.iter().map(|row| row[column]).collect();
            let is_true = measured.iter().zip(&told).all(|(&measured, &told)| is_near(measured, told));
            assert!(
                is_true,
                "examples/kernel/README.md says {told:?}, measured are {measured:?} of {small:?}"
            );
        }
    }

    /// Whether two counts of instructions differ by less than a tenth.
    fn is_near(one: u64, other: u64) -> bool {
        one.abs_diff(other) * 10 < one.max(other)
    }

    /// What the kernel's README tells of costs: a row of the table for each thing, a column for each number of VMAs.
    fn told_costs() -> Vec<[u64; 3]> {
        let (_, section) = README.split_once("## What it costs").expect("the README tells costs");
        let rows = section.lines().filter(|line| line.starts_with("| "));
        let numbers = |row: &str| {
            let cells = row.split('|').map(|cell| cell.trim().replace(',', ""));
            cells.filter_map(|cell| cell.parse().ok()).collect::<Vec<u64>>()
        };
        let told: Vec<_> = rows.filter_map(|row| numbers(row).try_into().ok()).collect();
        assert_eq!(told.len(), 5, "touch, mmap, munmap, fork, and fork with exit and wait: {told:?}");
        told
    }

    #[test]
    fn boots_with_ram_above_4_gib() {
        let Some(ended) = run(Machine { nodes: 2, memory: "6G", append: "run=threads,measure", ..MACHINE })
        else {
            return;
        };
        ended.assert_well();
        ended.assert_has("pvh: [mem 0x0000000100000000-0x00000001bfffffff] usable");
        ended.assert_has("init: threads exited with 0");
    }

    #[test]
    fn all_programs_run_with_24_mib() {
        let Some(ended) = run(Machine { memory: "24M", ..MACHINE }) else { return };
        ended.assert_well();
        ended.assert_programs();
    }

    #[test]
    fn all_programs_run_with_1_gib() {
        let Some(ended) = run(Machine { memory: "1G", ..MACHINE }) else { return };
        ended.assert_well();
        ended.assert_programs();
    }

    #[test]
    fn all_programs_run_where_most_memory_is_not_in_the_direct_map() {
        let Some(ended) = run(Machine { memory: "64M", append: "highmem=24", ..MACHINE }) else { return };
        ended.assert_well();
        ended.assert_programs();
        assert_eq!(ended.count("Node 0, zone  HighMem"), 3, "{}", ended.log);
    }

    #[test]
    fn a_panic_ends_the_run_with_another_status() {
        let Some(ended) = run(Machine { append: "panic", ..MACHINE }) else { return };
        assert_eq!(ended.status, 35, "{}", ended.log);
        ended.assert_has("asked for on the command line");
        assert_eq!(ended.count("done"), 0);
    }

    #[test]
    fn a_fault_in_the_kernel_is_reported_with_its_address() {
        let Some(ended) = run(Machine { append: "fault", cpus: 1, ..MACHINE }) else { return };
        assert_eq!(ended.status, 35, "{}", ended.log);
        assert_eq!(ended.count("page fault at address 0xffffa88000000000, error 0x2"), 1, "{}", ended.log);
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[test]
fn the_kernel_is_built_on_x86_64_linux_only() {
    skip::skip("examples/kernel is built with the host's target, which must be x86-64 Linux");
}
