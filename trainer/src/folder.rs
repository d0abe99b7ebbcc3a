//! Files of a model folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use proto::hex_sha256;

/// Writes indented JSON that ends with a newline.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| format!("cannot remove {}", path.display())),
        _ => Ok(()),
    }
}

/// The SHA-256 of files of a model folder, by name.
pub fn digests(dir: &Path, files: &[&str]) -> Result<BTreeMap<String, String>> {
    let digest = |file: &&str| -> Result<(String, String)> {
        let path = dir.join(file);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(((*file).to_owned(), hex_sha256(&bytes)))
    };
    files.iter().map(digest).collect()
}

/// Writes a section of the model card: it replaces the section with that heading, or becomes the last.
pub fn put_section(dir: &Path, heading: &str, section: &str) -> Result<()> {
    let path = dir.join("README.md");
    let card = match fs::read_to_string(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            format!("# {}\n", dir.file_name().unwrap_or_default().to_string_lossy())
        }
        card => card.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let mark = format!("\n## {heading}\n");
    let (before, former) = card.split_once(&mark).unwrap_or((&card, ""));
    let after = former.find("\n## ").map_or("", |next| &former[next..]);
    fs::write(&path, format!("{before}{mark}\n{section}{after}")).with_context(|| format!("cannot write {}", path.display()))
}
