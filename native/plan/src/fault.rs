//! What can go wrong with a plan or a run, as one value: a short code, a sentence, and the place.

use std::fmt;

/// Which kind of mistake a [`Fault`] is; the Python side maps each to one error class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The text is not JSON, or not the JSON of a plan.
    Json,
    /// The plan is of a format version this build does not read.
    Version,
    /// The plan is readable but breaks a rule of the plan format.
    Plan,
    /// The constants file does not hold what the plan says.
    Constants,
    /// The plan would read or write memory it does not own, or memory still in use.
    Memory,
    /// An input or output of a run has the wrong name, size or type.
    Input,
    /// An input holds NaN or an infinity.
    NotFinite,
    /// An input lies outside the range the plan states.
    Range,
    /// A run met an index outside the table it looks into.
    Index,
    /// A loop that repeats was not done after its last round.
    Unfinished,
    /// A batch is empty.
    Batch,
    /// A batch needs more memory than there is.
    TooLarge,
    /// The thread count or instruction set asked for is not to be had.
    Machine,
    /// The run was cancelled.
    Cancelled,
    /// A fault of scoregraph itself, caught before it could do harm.
    Internal,
}

impl Code {
    /// The short name used across the language boundary.
    pub fn name(self) -> &'static str {
        match self {
            Code::Json => "json",
            Code::Version => "version",
            Code::Plan => "plan",
            Code::Constants => "constants",
            Code::Memory => "memory",
            Code::Input => "input",
            Code::NotFinite => "not-finite",
            Code::Range => "range",
            Code::Index => "index",
            Code::Unfinished => "unfinished",
            Code::Batch => "batch",
            Code::TooLarge => "too-large",
            Code::Machine => "machine",
            Code::Cancelled => "cancelled",
            Code::Internal => "internal",
        }
    }
}

/// A mistake with its place: `segment loop, call 12 (conv2d at down.0): x has 3 channels, w wants 4`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of mistake.
    pub code: Code,
    /// What is wrong, in one sentence.
    pub text: String,
    /// Where, from the outside in; empty when the whole plan is meant.
    pub place: String,
    /// The one thing it is about, by name: an input, an output, a layer. Often empty.
    pub subject: String,
    /// The numbers the sentence states, for programs that want them: an index and its bound, steps done and in all.
    pub numbers: Vec<i64>,
}

impl Fault {
    /// A fault without a place; [`Fault::at`] adds one on the way out.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Fault { code, text: text.into(), place: String::new(), subject: String::new(), numbers: Vec::new() }
    }

    /// The same fault, saying what it is about and which numbers it states.
    #[must_use]
    pub fn about(mut self, subject: &str, numbers: impl Into<Vec<i64>>) -> Self {
        self.subject = subject.into();
        self.numbers = numbers.into();
        self
    }

    /// A broken rule of the plan format.
    pub fn plan(text: impl Into<String>) -> Self {
        Fault::new(Code::Plan, text)
    }

    /// A violation of memory rules.
    pub fn memory(text: impl Into<String>) -> Self {
        Fault::new(Code::Memory, text)
    }

    /// The same fault, seen from one level further out.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = if self.place.is_empty() { place.to_string() } else { format!("{place}, {}", self.place) };
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() { f.write_str(&self.text) } else { write!(f, "{}: {}", self.place, self.text) }
    }
}

impl std::error::Error for Fault {}

/// Most functions here either answer or say which rule was broken.
pub type Result<T> = std::result::Result<T, Fault>;
