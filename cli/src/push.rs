//! `basin push`: a model for a fleet.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use proto::{ModelManifest, RunningSha256, keys};
use results::run::digested;
use store::{ErrorKind, Store, Upload};

#[derive(clap::Args)]
pub struct PushArgs {
    /// Model folder.
    model: PathBuf,
    /// Folder or bucket that is the fleet's home.
    #[arg(long, env = "BASIN_HOME_URL", value_name = "URL")]
    home: String,
}

pub async fn run(args: PushArgs) -> anyhow::Result<ExitCode> {
    let path = args.model.join("model.json");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (manifest, digest) =
        ModelManifest::parse(&bytes).with_context(|| format!("{} is not a valid model description", path.display()))?;
    keys::check_run(&manifest.name).map_err(|p| anyhow::anyhow!("the model's name {:?} {p}", manifest.name))?;
    let home = Store::open(&args.home).await.context("cannot open --home")?;
    let place = home.with_prefix(&keys::model_prefix(&manifest.name))?;
    let known = match place.get("model.json").await {
        Ok(there) if there == bytes => true,
        Ok(_) => bail!("{} holds another model with this name; give your model another name in its model.json", place.url()),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error.into()),
    };
    let mut written = Vec::new();
    for (file, expected) in &manifest.sha256 {
        match digested(file.clone(), &place).await {
            Ok(there) if there.sha256 == *expected => continue,
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let path = args.model.join(file);
        let mut upload = place.upload(file).await?;
        let sent = send(&path, &mut upload).await;
        if sent.as_ref().is_ok_and(|digest| digest == expected) {
            upload.finish().await?;
            written.push(file.as_str());
            continue;
        }
        let aborted = upload.abort().await;
        sent?;
        aborted?;
        bail!(
            "{} is not the file that model.json describes: it is damaged or was replaced; fetch or convert the model again",
            path.display()
        );
    }
    let (name, digest) = (&manifest.name, &digest[..12]);
    if !known {
        // Last, so that a model is complete once it can be seen.
        place.put("model.json", bytes).await?;
        say!("model {name} ({digest}) is in {}", place.url());
    } else if written.is_empty() {
        say!("model {name} ({digest}) is already in {}", place.url());
    } else {
        say!("model {name} ({digest}) is repaired in {}: {}", place.url(), written.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a file to `upload`; returns its SHA-256.
async fn send(path: &Path, upload: &mut Upload) -> anyhow::Result<String> {
    let reading = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut digest = RunningSha256::default();
    loop {
        let mut piece = Vec::new();
        if (&mut file).take(store::PIECE as u64).read_to_end(&mut piece).with_context(reading)? == 0 {
            return Ok(digest.hex());
        }
        digest.update(&piece);
        upload.write(piece).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_push_repairs_what_is_damaged_and_leaves_the_rest_and_other_models() {
        let dir = tempfile::tempdir().unwrap();
        let (model, home) = (dir.path().join("model"), dir.path().join("home"));
        fs::create_dir(&model).unwrap();
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fashion32");
        for file in fs::read_dir(&bundled).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), model.join(file.file_name())).unwrap();
        }
        let push = || run(PushArgs { model: model.clone(), home: home.to_str().unwrap().to_owned() });
        let there = home.join("models/fashion32");
        let read = |file: &str| fs::read(there.join(file)).unwrap();
        let written = |file: &str| fs::metadata(there.join(file)).unwrap().modified().unwrap();
        push().await.unwrap();

        let files = ["config.json", "generator.safetensors", "perceptual.json", "perceptual.safetensors", "model.json"];
        let whole = files.map(read);
        let mut damaged = whole[1].clone();
        damaged[5000] ^= 1;
        fs::write(there.join("generator.safetensors"), damaged).unwrap();
        fs::write(there.join("perceptual.json"), "").unwrap();
        fs::remove_file(there.join("config.json")).unwrap();
        let before = ["perceptual.safetensors", "model.json"].map(written);
        push().await.unwrap();
        assert!(files.map(read) == whole);
        assert_eq!(["perceptual.safetensors", "model.json"].map(written), before);

        // A damaged folder repairs nothing.
        fs::write(there.join("generator.safetensors"), "half").unwrap();
        fs::write(model.join("generator.safetensors"), "other half").unwrap();
        let refused = push().await.unwrap_err().to_string();
        assert!(refused.contains("is not the file that model.json describes"), "{refused}");
        assert_eq!(read("generator.safetensors"), b"half");

        let other = String::from_utf8(whole[4].clone()).unwrap().replace("Bag", "Bags");
        fs::write(model.join("model.json"), other).unwrap();
        let refused = push().await.unwrap_err().to_string();
        assert!(refused.contains("another model with this name"), "{refused}");
        assert!(read("model.json") == whole[4]);
    }
}
