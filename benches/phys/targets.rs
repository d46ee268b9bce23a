//! The rounds' figures and the goals they are held to.

/// What is measured, in the order of the table's columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Metric {
    Pair,
    PairFragmented,
    BulkAlloc,
    BulkFree,
    Uniform,
    Geometric,
    PairTwo,
    GeometricTwo,
    Pipe,
    FirstLargest,
    ContiguityUniform,
    ContiguityGeometric,
    Recovered,
    Reachable,
    Metadata,
    PairInstructions,
    PairFragmentedInstructions,
}

/// How the table shows a metric.
pub struct Column {
    pub metric: Metric,
    pub heading: &'static str,
    /// Digits after the point.
    pub digits: usize,
    pub factor: f64,
}

const fn column(metric: Metric, heading: &'static str, digits: usize) -> Column {
    Column { metric, heading, digits, factor: 1.0 }
}

const fn percent(metric: Metric, heading: &'static str) -> Column {
    Column { metric, heading, digits: 2, factor: 100.0 }
}

impl Metric {
    /// The table's columns, one a metric.
    pub const COLUMNS: [Column; 17] = [
        column(Self::Pair, "a", 1),
        column(Self::PairFragmented, "aw", 1),
        column(Self::BulkAlloc, "b alloc", 1),
        column(Self::BulkFree, "b free", 1),
        column(Self::Uniform, "c", 1),
        column(Self::Geometric, "cgeo", 1),
        column(Self::PairTwo, "2 a", 1),
        column(Self::GeometricTwo, "2 cgeo", 1),
        column(Self::Pipe, "pipe", 1),
        column(Self::FirstLargest, "o9 us", 2),
        percent(Self::ContiguityUniform, "c o9 %"),
        percent(Self::ContiguityGeometric, "cgeo o9 %"),
        percent(Self::Recovered, "recov %"),
        percent(Self::Reachable, "reach %"),
        column(Self::Metadata, "B/frame", 2),
        column(Self::PairInstructions, "Ir a", 0),
        column(Self::PairFragmentedInstructions, "Ir aw", 0),
    ];
}

/// One contender's figures: those of every round, for every metric it has.
#[derive(Default)]
pub struct Figures([Vec<f64>; Metric::COLUMNS.len()]);

impl Figures {
    /// Adds a round's figure.
    pub fn add(&mut self, metric: Metric, value: f64) {
        self.0[metric as usize].push(value);
    }

    /// The figures in the order of the rounds.
    pub fn rounds(&self, metric: Metric) -> &[f64] {
        &self.0[metric as usize]
    }

    /// The median over the rounds.
    pub fn median(&self, metric: Metric) -> Option<f64> {
        median(self.rounds(metric))
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Whom our figure is divided by.
#[derive(Clone, Copy)]
pub enum Against {
    /// Nobody: the figure itself counts.
    Nothing,
    /// The unchecked side-array buddy.
    Floor(Metric),
    /// frame-alloc with its depot.
    Depot(Metric),
    /// Our own other figure.
    Ourselves(Metric),
}

/// Which side of the goal is good.
#[derive(Clone, Copy)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(goal) => value <= goal,
            Self::AtLeast(goal) => value >= goal,
        }
    }
}

/// A goal for us.
pub struct Target {
    name: &'static str,
    metric: Metric,
    against: Against,
    goal: Goal,
    /// A stretch goal is reported, but missing it is no miss.
    stretch: bool,
}

const fn target(name: &'static str, metric: Metric, against: Against, goal: Goal) -> Target {
    Target { name, metric, against, goal, stretch: false }
}

const fn stretch(name: &'static str, metric: Metric, against: Against, goal: Goal) -> Target {
    Target { name, metric, against, goal, stretch: true }
}

/// The goals.
pub const TARGETS: [Target; 22] = {
    use Against::{Depot, Floor, Nothing, Ourselves};
    use Goal::{AtLeast, AtMost};
    use Metric::*;
    [
        target("a_ir", PairInstructions, Nothing, AtMost(130.0)),
        target("aw_ir", PairFragmentedInstructions, Nothing, AtMost(130.0)),
        stretch("a_ir", PairInstructions, Nothing, AtMost(90.0)),
        stretch("aw_ir", PairFragmentedInstructions, Nothing, AtMost(90.0)),
        target("a/depot", Pair, Depot(Pair), AtMost(0.45)),
        target("aw/depot", PairFragmented, Depot(PairFragmented), AtMost(0.45)),
        stretch("a/depot", Pair, Depot(Pair), AtMost(0.30)),
        stretch("aw/depot", PairFragmented, Depot(PairFragmented), AtMost(0.30)),
        target("aw/a", PairFragmented, Ourselves(Pair), AtMost(1.10)),
        target("b_alloc/floor", BulkAlloc, Floor(BulkAlloc), AtMost(1.5)),
        target("b_free/floor", BulkFree, Floor(BulkFree), AtMost(1.2)),
        target("c/depot", Uniform, Depot(Uniform), AtMost(0.75)),
        target("cgeo/depot", Geometric, Depot(Geometric), AtMost(0.6)),
        target("2a/a", PairTwo, Ourselves(Pair), AtMost(1.15)),
        target("2cgeo/depot", GeometricTwo, Depot(GeometricTwo), AtMost(0.5)),
        target("pipe/depot", Pipe, Depot(Pipe), AtMost(1.2)),
        target("contiguity_c", ContiguityUniform, Nothing, AtLeast(0.97)),
        target("contiguity_cgeo", ContiguityGeometric, Nothing, AtLeast(0.97)),
        target("recovered", Recovered, Nothing, AtLeast(1.0)),
        target("reachable", Reachable, Nothing, AtLeast(1.0)),
        target("first_order9_us", FirstLargest, Nothing, AtMost(50.0)),
        stretch("pipe/depot", Pipe, Depot(Pipe), AtMost(1.0)),
    ]
};

/// The bytes that a page's metadata may have.
const PAGE_BYTES: usize = 32;

/// Holds the size of a page's metadata to its goal, and says what the tables beside them come to: of sections, page blocks, zones and CPUs'
/// lists.
pub fn judge_metadata(page_bytes: usize, ours: &Figures) -> Option<Verdict> {
    let tables = ours.median(Metric::Metadata)? - page_bytes as f64;
    let missed = page_bytes > PAGE_BYTES;
    let outcome = if missed { "MISS" } else { "ok" };
    let line = format!(
        "target metadata_bytes {page_bytes} <= {PAGE_BYTES} {outcome} (tables beside them: {tables:.3} a frame)"
    );
    Some(Verdict { line, missed })
}

/// Whose figures a target needs.
pub struct Field<'a> {
    pub ours: &'a Figures,
    pub floor: &'a Figures,
    pub depot: &'a Figures,
}

/// How a target came out.
pub struct Verdict {
    /// The line to print.
    pub line: String,
    /// A goal that is not a stretch was missed.
    pub missed: bool,
}

impl Target {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Holds the rounds to the goal; `None` where a figure was not taken.
    pub fn judge(&self, field: &Field<'_>) -> Option<Verdict> {
        let rounds = self.values_quietest_first(field);
        let value = median(&rounds)?;
        let met = self.goal.met_by(value) || rounds.iter().take(3).any(|&round| self.goal.met_by(round));
        let (kind, relation, goal) = match (self.stretch, self.goal) {
            (false, Goal::AtMost(goal)) => ("target", "<=", goal),
            (false, Goal::AtLeast(goal)) => ("target", ">=", goal),
            (true, Goal::AtMost(goal)) => ("stretch", "<=", goal),
            (true, Goal::AtLeast(goal)) => ("stretch", ">=", goal),
        };
        let outcome = if met { "ok" } else { "MISS" };
        let mut line = format!("{kind} {} {value:.3} {relation} {goal} {outcome}", self.name);
        if met && !self.goal.met_by(value) {
            let quietest: Vec<_> = rounds.iter().take(3).map(|round| format!("{round:.3}")).collect();
            line += &format!(" (three quietest rounds: {})", quietest.join(", "));
        }
        Some(Verdict { line, missed: !met && !self.stretch })
    }

    /// A round's noise hits both sides of a ratio, so each round's own ratio counts, and a round is the quieter the less
    /// time both sides took in it: a disturbed peer does not make a good round.
    fn values_quietest_first(&self, field: &Field<'_>) -> Vec<f64> {
        let ours = field.ours.rounds(self.metric);
        let other = match self.against {
            Against::Nothing => None,
            Against::Floor(metric) => Some(field.floor.rounds(metric)),
            Against::Depot(metric) => Some(field.depot.rounds(metric)),
            Against::Ourselves(metric) => Some(field.ours.rounds(metric)),
        };
        let mut rounds: Vec<(f64, f64)> = match other {
            Some(other) => ours.iter().zip(other).map(|(ours, other)| (ours + other, ours / other)).collect(),
            None => match self.goal {
                Goal::AtMost(_) => ours.iter().map(|&value| (value, value)).collect(),
                Goal::AtLeast(_) => ours.iter().map(|&value| (-value, value)).collect(),
            },
        };
        rounds.sort_by(|left, right| left.0.total_cmp(&right.0));
        rounds.into_iter().map(|(_, value)| value).collect()
    }
}
