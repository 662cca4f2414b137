//! What went wrong, in the words and codes of the Python package.

use std::fmt;
use std::path::Path;

use scoregraph_plan::{Code, Fault};

/// A mistake of the user or of a file: `SG502 broken plan: …`, the place, and what helps.
#[derive(Debug)]
pub struct Failure {
    code: &'static str,
    title: &'static str,
    problem: String,
    place: String,
    help: &'static str,
}

impl Failure {
    fn new((code, title, help): (&'static str, &'static str, &'static str), problem: impl Into<String>) -> Self {
        Failure { code, title, problem: problem.into(), place: String::new(), help }
    }

    /// The same failure, at a place.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = place.to_string();
        self
    }

    /// There is no plan in the folder.
    pub fn missing_plan(folder: &Path) -> Self {
        let kind = ("SG501", "no plan there", "give the folder that 'scoregraph compile … -o FOLDER' wrote");
        Failure::new(kind, format!("{} holds no plan.json", folder.display()))
    }

    /// The plan or its constants are not as they were written.
    pub fn broken(problem: impl Into<String>) -> Self {
        let help = "compile the graph again; a plan file is not meant to be edited";
        Failure::new(("SG502", "broken plan", help), problem)
    }

    /// The result cannot be written.
    pub fn cannot_write(path: &Path, error: &std::io::Error) -> Self {
        let help = "choose a folder you may write to, with room on its disk";
        Failure::new(("SG504", "cannot write there", help), format!("{}: {error}", path.display()))
    }

    /// A setting that cannot be read.
    pub fn setting(text: &str, problem: &str) -> Self {
        let help = "write --set name=0.5, --set 'name=[1, 2]' with one value per sample, or --set name=@file.npy";
        Failure::new(("SG702", "unreadable setting", help), format!("{text:?}: {problem}")).at("--set")
    }

    /// A value that does not fit its input.
    pub fn input(name: &str, problem: impl fmt::Display) -> Self {
        let kind = ("SG602", "bad input", "give a number for all samples, or one value per sample");
        Failure::new(kind, format!("{name:?}: {problem}")).at(format!("--set {name}=…"))
    }

    /// An input without a value.
    pub fn missing_input(name: &str, known: &str) -> Self {
        let kind = ("SG601", "missing input", "give every input that has no default with --set name=value");
        Failure::new(kind, format!("the plan needs a value for {name:?}; it takes {known}"))
    }

    /// Numbers of samples that disagree.
    pub fn batch(said: &str) -> Self {
        let help = "give every input one value per sample or a single value, and at least one sample";
        Failure::new(("SG603", "batch sizes disagree", help), said)
    }

    /// An ending of a file name that says no format.
    pub fn ending(path: &Path, known: &str) -> Self {
        let kind = ("SG703", "unknown file format", "name the file so that its ending says the format");
        Failure::new(kind, format!("{} cannot be written; known: {known}", path.display())).at("--out")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.title, self.problem)?;
        if !self.place.is_empty() {
            write!(f, "\n  at   {}", self.place)?;
        }
        write!(f, "\n  help {}", self.help)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let edited = "compile the graph again; a plan file is not meant to be edited";
        let kind = match fault.code {
            Code::Json | Code::Plan | Code::Memory | Code::Constants => ("SG502", "broken plan", edited),
            Code::Version => ("SG503", "wrong plan version", "compile the graph again with this version"),
            Code::Input | Code::NotFinite | Code::Range => {
                ("SG602", "bad input", "give finite numbers in the range the plan states")
            }
            Code::Batch => ("SG603", "batch sizes disagree", "give at least one sample"),
            Code::Cancelled => ("SG604", "cancelled", "run it again; the same seed gives the same samples"),
            Code::Index => ("SG605", "index out of range", "give indices from 0 to one less than the number of rows"),
            Code::TooLarge => (
                "SG606",
                "not enough memory",
                "run fewer samples at a time; sample i of a run has the seed s + i, so the samples stay the same",
            ),
            Code::Machine => (
                "SG607",
                "setting does not fit this machine",
                "unset SCOREGRAPH_THREADS and SCOREGRAPH_ISA to take what the machine has",
            ),
            Code::Unfinished => ("SG610", "loop not finished", "allow more rounds, or loosen the solver's tolerances"),
            Code::Internal => ("SG609", "a fault of scoregraph", "please report this with the plan's folder"),
        };
        Failure::new(kind, fault.text).at(fault.place)
    }
}
