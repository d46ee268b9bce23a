//! The rounds' figures and the goals they are held to.

use crate::faults::Recording;

/// How addresses follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    Uniform,
    Zipf,
    Local,
}

impl Stream {
    pub const ALL: [Self; 3] = [Self::Uniform, Self::Zipf, Self::Local];

    const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
            Self::Local => "local",
        }
    }
}

/// What is measured, with how many VMAs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Metric {
    Find(Stream, usize),
    Replace(usize),
    Churn(usize),
    Room(usize),
    Gap(usize),
    /// A recording, by its place.
    Faults(usize),
}

impl Metric {
    pub fn name(self, recordings: &[Recording]) -> String {
        match self {
            Self::Find(stream, count) => format!("find {} {count}", stream.name()),
            Self::Replace(count) => format!("remove+insert {count}"),
            Self::Churn(count) => format!("munmap+room+mmap {count}"),
            Self::Room(count) => format!("far room {count}"),
            Self::Gap(count) => format!("far room+mmap+munmap {count}"),
            Self::Faults(index) => format!("faults of {}", recordings[index].name),
        }
    }

    /// Whether the head of the table comes before it.
    pub fn is_first(self) -> bool {
        self == Self::Find(Stream::Uniform, 10)
    }
}

/// One contender's figures: those of every round, for every metric it has.
#[derive(Default)]
pub struct Figures(Vec<(Metric, Vec<f64>)>);

impl Figures {
    /// Adds a round's figure.
    pub fn add(&mut self, metric: Metric, value: f64) {
        match self.0.iter_mut().find(|(found, _)| *found == metric) {
            Some((_, values)) => values.push(value),
            None => self.0.push((metric, vec![value])),
        }
    }

    /// The median over the rounds.
    pub fn median(&self, metric: Metric) -> Option<f64> {
        let (_, values) = self.0.iter().find(|(found, _)| *found == metric)?;
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }
}

/// A goal for us: our time over another's is at most this.
pub struct Target {
    pub name: String,
    pub ours: &'static str,
    /// Whom ours is divided by; the fastest peer if nobody is named.
    pub against: Option<&'static str>,
    metric: Metric,
    /// Without one the ratio is told, and nothing is missed.
    at_most: Option<f64>,
}

/// How we did.
pub struct Verdict {
    pub line: String,
    pub missed: bool,
}

impl Target {
    /// Compares our figures with the best of `against`, unless one was not measured.
    pub fn judge(&self, ours: &Figures, against: &[&Figures]) -> Option<Verdict> {
        let theirs = against.iter().filter_map(|peer| peer.median(self.metric)).min_by(f64::total_cmp)?;
        let ratio = ours.median(self.metric)? / theirs;
        Some(match self.at_most {
            Some(goal) => Verdict::new(&self.name, ratio, goal),
            None => Verdict { line: format!("ratio {} {ratio:.6}", self.name), missed: false },
        })
    }
}

impl Verdict {
    pub fn new(name: &str, value: f64, goal: f64) -> Self {
        let missed = value > goal;
        let word = if missed { "MISS" } else { "ok" };
        Self { line: format!("target {name} {value:.6} <= {goal:.6} {word}"), missed }
    }
}

/// The goals of our set of VMAs, like for like with the peers, and, under names that begin with `calls_`, how whole calls do beside them, which do more than
/// any peer. "So many times as fast" is stated as a ratio of times.
pub fn targets(recordings: &[Recording]) -> Vec<Target> {
    let mut targets = comparisons("", "kernmm set", recordings);
    // No call looks for room and takes none.
    let set = Some("memory_set");
    targets.push(target("room_65k/memory_set", "kernmm set", set, Metric::Room(65_536), Some(1.0 / 5_000.0)));
    let change = |name, ours| target(name, ours, set, Metric::Gap(65_536), None);
    targets.push(change("far_room_change_65k/memory_set", "kernmm set"));
    let calls = comparisons("calls_", "kernmm calls", recordings);
    targets.extend(calls.into_iter().map(|target| Target { at_most: None, ..target }));
    targets.push(change("calls_far_room_change_65k/memory_set", "kernmm calls"));
    targets
}

fn target(
    name: &str,
    ours: &'static str,
    against: Option<&'static str>,
    metric: Metric,
    at_most: Option<f64>,
) -> Target {
    Target { name: name.to_string(), ours, against, metric, at_most }
}

fn comparisons(prefix: &str, ours: &'static str, recordings: &[Recording]) -> Vec<Target> {
    let named = |name: &str, against, metric, at_most| {
        target(&format!("{prefix}{name}"), ours, against, metric, Some(at_most))
    };
    let set = Some("memory_set");
    let mut targets = vec![
        named("find_1k/BTreeMap", Some("BTreeMap"), Metric::Find(Stream::Uniform, 1_000), 1.25),
        named("find_local_1k/memory_set", set, Metric::Find(Stream::Local, 1_000), 0.65),
        named("find_local_100k/memory_set", set, Metric::Find(Stream::Local, 100_000), 0.65),
        named("churn_1k/memory_set", set, Metric::Churn(1_000), 1.0 / 8.0),
        named("churn_65k/memory_set", set, Metric::Churn(65_536), 1.0 / 250.0),
        named("remove_insert_100k/memory_set", set, Metric::Replace(100_000), 1.0 / 280.0),
    ];
    for (index, recording) in recordings.iter().enumerate() {
        let name = format!("faults_{}/best_peer", recording.name);
        targets.push(named(&name, None, Metric::Faults(index), 1.0));
    }
    targets
}
