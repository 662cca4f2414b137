//! `scoregraph-run`: a saved plan, run without Python. docs/runner.md is its page.

mod array;
mod failure;
mod folder;
mod inputs;
mod picture;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use scoregraph_plan::machine::human_bytes;
use scoregraph_plan::schema::DType;
use scoregraph_plan::{Given, Monitor, Program, Wanted};
use serde_json::json;

use crate::failure::Failure;
use crate::picture::Picture;

/// Run a saved plan on this processor.
#[derive(Parser)]
#[command(name = "scoregraph-run", version)]
struct Options {
    /// A plan folder, as 'scoregraph compile … -o FOLDER' writes it
    folder: PathBuf,
    /// An input: a number, a list with one value per sample, or @file.npy
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// Sample i draws its noise from the key SEED + i; negative ones count from 2^64
    #[arg(long, default_value = "0", allow_hyphen_values = true, value_parser = key)]
    seed: u64,
    /// Number of samples
    #[arg(long)]
    batch: Option<usize>,
    /// Number of threads [default: SCOREGRAPH_THREADS, else all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Where results go: a .npy file, a .png picture, or a folder with a file for every output
    #[arg(long)]
    out: Option<PathBuf>,
    /// Say what took how long, and how much memory
    #[arg(long)]
    time: bool,
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
}

/// A seed as the 64 bits that key the noise.
fn key(text: &str) -> Result<u64, String> {
    let whole: i128 = text.parse().map_err(|_| "a seed is a whole number".to_string())?;
    Ok(whole as u64)
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options, Instant::now()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// An output of a run.
struct Output {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn run(options: &Options, started: Instant) -> Result<(), Failure> {
    check_ending(options.out.as_deref())?;
    let settings = options.settings.iter().map(|text| inputs::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let (json, constants) = folder::open(&options.folder)?;
    let program = Program::new(&json, constants, options.threads, None)?;
    let loaded = Instant::now();
    let plan = program.plan();
    let (inputs, batch) = inputs::fit(plan, &settings, options.batch)?;
    let mut outputs = Vec::new();
    for spec in &plan.outputs {
        let buffer = plan.buffers.iter().find(|buffer| buffer.id == spec.buffer);
        let buffer = buffer.ok_or_else(|| Failure::broken(format!("output {:?} has no buffer", spec.name)))?;
        let shape = inputs::shape(buffer, batch)?;
        let bytes = vec![0; shape.iter().product::<usize>() * buffer.dtype.size()];
        outputs.push(Output { name: spec.name.clone(), dtype: buffer.dtype, shape, bytes });
    }
    let seeds: Vec<u64> = (0..batch as u64).map(|i| options.seed.wrapping_add(i)).collect();
    let given: Vec<Given<'_>> =
        (inputs.iter()).map(|input| Given { name: &input.name, dtype: input.dtype, bytes: &input.bytes }).collect();
    let mut wanted: Vec<Wanted<'_>> = (outputs.iter_mut())
        .map(|output| Wanted { name: &output.name, dtype: output.dtype, bytes: &mut output.bytes })
        .collect();
    let mut watch = Watch { shown: std::io::stderr().is_terminal() && !options.json, first: None, told: started };
    let outcome = program.run(&given, &mut wanted, &seeds, &mut watch);
    watch.clear();
    outcome?;
    let finished = Instant::now();
    let files = write(&outputs, options, &plan.name)?;
    report(options, &program, &files, batch, &Times { started, loaded, first: watch.first, finished });
    Ok(())
}

/// Shows the steps on a terminal, and remembers when the first one was done.
struct Watch {
    shown: bool,
    first: Option<Instant>,
    told: Instant,
}

impl Watch {
    fn clear(&self) {
        if self.shown {
            // A terminal that cannot be written to is not worth ending a run.
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Monitor for Watch {
    fn step(&mut self, done: usize, total: usize) {
        self.first.get_or_insert_with(Instant::now);
        if self.shown && (self.told.elapsed() > Duration::from_millis(50) || done == total) {
            self.told = Instant::now();
            let _ = write!(std::io::stderr(), "\r\x1b[Ksampling {done}/{total}");
        }
    }
}

fn check_ending(path: Option<&Path>) -> Result<(), Failure> {
    match path {
        Some(path) if path.extension().is_some_and(|end| end != "npy" && end != "png") => {
            Err(Failure::ending(path, ".npy, .png, or a folder"))
        }
        _ => Ok(()),
    }
}

/// Writes the outputs, and says where.
fn write(outputs: &[Output], options: &Options, plan: &str) -> Result<Vec<PathBuf>, Failure> {
    // A plan's name may hold anything; a file's name not.
    let safe = |name: &str| name.replace(|c: char| !c.is_alphanumeric() && !"-_. ".contains(c), "_");
    let out =
        options.out.clone().unwrap_or_else(|| Path::new("out").join(format!("{}-seed{}", safe(plan), options.seed)));
    let make = |folder: &Path| std::fs::create_dir_all(folder).map_err(|error| Failure::cannot_write(folder, &error));
    match out.extension().and_then(|end| end.to_str()).filter(|_| options.out.is_some()) {
        Some(end) => {
            make(out.parent().unwrap_or(Path::new("")))?;
            let Some(first) = outputs.first() else { return Ok(Vec::new()) };
            if end == "png" {
                let drawn = outputs.iter().find_map(Output::picture);
                drawn.ok_or_else(|| Failure::ending(&out, ".npy (none of the outputs is a picture)"))?.write(&out)?;
            } else if outputs.len() == 1 {
                array::write(&out, first.dtype, &first.shape, &first.bytes)?;
            } else {
                return Err(Failure::ending(&out, "a folder, for the plan has several outputs"));
            }
            Ok(vec![out])
        }
        None => {
            make(&out)?;
            let mut files = Vec::new();
            for output in outputs {
                let name = safe(&output.name);
                let path = out.join(format!("{name}.npy"));
                array::write(&path, output.dtype, &output.shape, &output.bytes)?;
                files.push(path);
                if let Some(picture) = output.picture() {
                    let path = out.join(format!("{name}.png"));
                    picture.write(&path)?;
                    files.push(path);
                }
            }
            Ok(files)
        }
    }
}

impl Output {
    fn picture(&self) -> Option<Picture> {
        if self.dtype != DType::F32 {
            return None;
        }
        let values: Vec<f32> =
            self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Picture::of(&self.shape, &values)
    }
}

/// When what was done.
struct Times {
    started: Instant,
    loaded: Instant,
    first: Option<Instant>,
    finished: Instant,
}

fn report(options: &Options, program: &Program, files: &[PathBuf], batch: usize, times: &Times) {
    let ms = |from: Instant, to: Instant| ((to - from).as_secs_f64() * 1e4).round() / 10.0;
    let stats = program.stats();
    let (load, run) = (ms(times.started, times.loaded), ms(times.loaded, times.finished));
    let first = times.first.map(|first| ms(times.started, first));
    let peak = peak_memory();
    let memory = program.memory(batch as u64).ok();
    if options.json {
        let used =
            memory.map(|m| json!({"batch": m.batch, "fixed": m.fixed, "scratch": m.scratch, "constants": m.constants}));
        let line = json!({
            "files": files, "load_ms": load, "first_step_ms": first, "run_s": run / 1e3, "samples": batch,
            "steps": stats.steps, "network_calls": stats.network_calls, "branch_evaluations": stats.branch_evaluations,
            "isa": program.target().isa.name(), "threads": program.target().threads, "peak_bytes": peak, "memory": used,
        });
        println!("{line}");
        return;
    }
    for file in files {
        println!("wrote {}", file.display());
    }
    println!(
        "load {load} ms, run {:.3} s, samples {batch}, steps {}, network calls {}",
        run / 1e3,
        stats.steps,
        stats.network_calls
    );
    if options.time {
        if let Some(first) = first {
            println!("first step done {first} ms after the start");
        }
        let target = program.target();
        println!("instruction set {}, {} thread(s)", target.isa.name(), target.threads);
        if let Some(memory) = memory {
            let size = |bytes: usize| human_bytes(bytes as u64);
            println!(
                "memory: values {}, of them {} for each sample; kernels {}; constants {}",
                size(memory.batch + memory.fixed),
                size(memory.batch / batch),
                size(memory.scratch),
                size(memory.constants)
            );
        }
        if let Some(peak) = peak {
            println!("peak memory of the process {}", human_bytes(peak));
        }
    }
}

/// The most memory this process has held, where the system says.
fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
