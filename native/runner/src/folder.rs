//! A plan folder: `plan.json`, proved to be as it was written, and `constants.arrow`, mapped.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use scoregraph_plan::{Constants, schema};
use sha2::{Digest, Sha256};

use crate::failure::Failure;

/// What closes `plan.json`: a digest of all text before it.
const SEAL: &str = ",\n \"sha256\"";

/// The plan's JSON without its digest, and the mapped constants.
///
/// Both digests are checked; what the plan says is proved by `scoregraph_plan::Program::new`.
pub fn open(folder: &Path) -> Result<(Vec<u8>, Constants), Failure> {
    let path = folder.join("plan.json");
    if !path.is_file() {
        return Err(Failure::missing_plan(folder));
    }
    let broken = |problem: &str| Failure::broken(problem).at(path.display());
    let bytes = std::fs::read(&path).map_err(|error| broken(&format!("it cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|_| broken("it is not UTF-8 text"))?;
    let body: serde_json::Value = serde_json::from_str(&text).map_err(|error| broken(&format!("not JSON: {error}")))?;
    // A plan of another version is called that before its digest, which may be another's as well, is looked at.
    if body["format"] != "scoregraph-plan" || body["version"] != schema::VERSION {
        schema::read(text.as_bytes()).map_err(Failure::from)?;
    }
    let (covered, _) = text.rsplit_once(SEAL).ok_or_else(|| broken("it has no digest: it was edited or cut short"))?;
    if body["sha256"] != hex(&Sha256::digest(covered)) {
        return Err(broken("its digest does not match its text: it was edited or cut short"));
    }
    let constants = map(&folder.join("constants.arrow"), body["constants_sha256"].as_str().unwrap_or_default())?;
    Ok((format!("{covered}\n}}\n").into_bytes(), constants))
}

fn map(path: &Path, digest: &str) -> Result<Constants, Failure> {
    let broken = |problem: String| Failure::broken(problem).at(path.display());
    let file = File::open(path).map_err(|error| broken(format!("constants.arrow cannot be read: {error}")))?;
    // SAFETY: the file is only read. Whoever changes it during a run can spoil numbers but no bounds, which were proved
    // from plan.json; whoever cuts it short ends this process.
    let mapped = unsafe { Mmap::map(&file) }.map_err(|error| broken(format!("it cannot be mapped: {error}")))?;
    if hex(&Sha256::digest(&mapped)) != digest {
        return Err(broken("constants.arrow is not the one this plan was written with".into()));
    }
    let (start, len) = (mapped.as_ptr(), mapped.len());
    // SAFETY: the mapping keeps these bytes where they are for as long as it lives; see above for changes.
    Ok(unsafe { Constants::from_raw(start, len, Box::new(mapped)) })
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
