//! The whole product through its front door: `basin project` on real images with the bundled model.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use engine::edit::{EditRequest, Projected};
use harness::{
    Process, SHORT, assert_contains, copy_folder, damage, exchange, expect, files, losses, output_text, program, push_model,
    records, root, sample_images, signal, wait_for,
};
use proto::{FineTune, FineTuned, LatentSearch, ModelManifest, Params, ResultRecord, sample};
use store::Store;

mod models;
mod study;

/// A data set and a place for results, in a temporary folder.
struct Scene {
    dir: tempfile::TempDir,
    model: PathBuf,
    params: Params,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let scene = Scene { dir, model: bundled(), params: sample::params(SHORT) };
        fs::create_dir(scene.path("data")).expect("writable");
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As `path`, for an argument.
    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// `n` sample images in class folders.
    fn with_samples(self, n: usize) -> Scene {
        sample_images(&self.path("data"), n);
        self
    }

    fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Scene {
        let path = self.path("data").join(name);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("writable");
        fs::write(path, bytes).expect("writable");
        self
    }

    fn command(&self, out: &str, more: &[&str]) -> Command {
        let params = self.path("params.json");
        fs::write(&params, self.params.to_json()).expect("writable");
        let mut command = Command::new(program("basin"));
        command.arg("project").arg(self.path("data")).arg("--out").arg(self.path(out));
        if !more.contains(&"--model") {
            command.arg("--model").arg(&self.model);
        }
        command.arg("--params").arg(params).args(more);
        if !more.contains(&"--devices") {
            command.args(["--devices", "cpu"]);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs, expecting an exit code; returns what was printed.
    fn expect(&self, code: i32, out: &str, more: &[&str]) -> String {
        expect(code, &mut self.command(out, more))
    }

    fn losses(&self, out: &str) -> BTreeMap<String, Vec<f64>> {
        losses(&self.text(out))
    }

    /// The result of an image of the run `out`, and the folder of its objects.
    fn record(&self, image: &str) -> (ResultRecord, PathBuf) {
        let place = self.path("out/images").join(image);
        let bytes = fs::read(place.join("result.json")).expect("it is there");
        let record: ResultRecord = serde_json::from_slice(&bytes).expect("a record");
        let objects = place.join(format!("attempt-{}", record.attempt));
        (record, objects)
    }
}

fn bundled() -> PathBuf {
    root().join("models/fashion32")
}

fn manifest(folder: &Path) -> ModelManifest {
    ModelManifest::parse(&fs::read(folder.join("model.json")).expect("readable")).expect("a model").0
}

/// Runs `basin`, expecting an exit code; returns what was printed.
fn basin(code: i32, arguments: &[&str]) -> String {
    expect(code, Command::new(program("basin")).args(arguments))
}

/// What a script of `infra` put below cargo's folder.
fn prepared(path: &str, script: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join(path);
    assert!(path.exists(), "no {}: run {script} (make test does)", path.display());
    path
}

#[test]
fn a_run_leaves_every_promised_file_and_a_second_one_does_nothing() {
    let scene = Scene::new().with_samples(2);
    assert_contains(&scene.expect(0, "out", &[]), &["2 images: 2 succeeded, 0 failed"]);
    for image in ["Bag/0.png", "Coat/1.png"] {
        for file in [
            "result.json",
            "projection.safetensors",
            "target.png",
            "transformed.png",
            "generated.png",
            "inverted.png",
            "history.json",
        ] {
            let found = files(&scene.path("out/images").join(image));
            assert_eq!(found.iter().filter(|path| path.ends_with(file)).count(), 1, "{image} has no single {file}");
        }
    }
    for file in ["run.json", "results.csv", "results.parquet", "summary.json", "report.html", "manifest.json", "objects.jsonl.gz"]
    {
        assert!(scene.path("out").join(file).is_file(), "no {file}");
    }
    for folder in ["out/checkpoints", "out/attempts"] {
        assert_eq!(files(&scene.path(folder)), Vec::<PathBuf>::new());
    }
    let before = scene.losses("out");
    assert_contains(&scene.expect(0, "out", &[]), &["nothing is left to project"]);
    assert_eq!(scene.losses("out"), before);
}

/// What an example of the documentation prints.
fn python_example(scene: &Scene, name: &str, argument: &str) -> String {
    let docs = ["docs/src/how-to/results.md", "docs/src/reference/weight-deltas.md"]
        .map(|file| fs::read_to_string(root().join(file)).expect("readable"))
        .concat();
    let example = docs.split(&format!("```python {name}\n")).nth(1).and_then(|t| t.split("```").next()).expect("the example");
    fs::write(scene.path("example.py"), example).expect("writable");
    let python = prepared("docs-python/bin/python", "infra/docs-python.sh");
    expect(0, Command::new(python).arg(scene.path("example.py")).arg(scene.path(argument)))
}

#[test]
fn the_python_examples_of_the_documentation_read_a_run_and_an_export() {
    let scene = Scene::new().with_samples(2);
    scene.expect(0, "out", &[]);
    let text = python_example(&scene, "results-example", "out");
    assert!(text.starts_with("2 of 2 succeeded") && text.contains("Bag/0.png (64,)"), "{text}");
    basin(0, &["export", &scene.text("out"), "--out", &scene.text("export")]);
    let text = python_example(&scene, "export-example", "export/shard-000000.tar");
    assert!(text.starts_with("Bag/0.json Bag/0.png loss ") && text.contains("Coat/1.json Coat/1.png loss "), "{text}");
}

#[test]
fn devices_and_batches_do_not_change_the_answer_and_the_seed_does() {
    let scene = Scene::new().with_samples(3);
    scene.expect(0, "one", &["--batch-images", "1"]);
    scene.expect(0, "two", &["--batch-images", "3", "--devices", "cpu,cpu,cpu"]);
    scene.expect(0, "three", &["--batch-images", "3", "--seed", "1"]);
    assert_eq!(scene.losses("one"), scene.losses("two"));
    assert_ne!(scene.losses("one"), scene.losses("three"));
}

#[test]
fn bad_images_become_failures_with_reasons_and_the_good_ones_are_projected() {
    let png = fs::read(root().join("samples/images/bag_00_centred.png")).expect("sample");
    let mut huge = png.clone();
    huge[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    let jpeg = {
        let mut bytes = Vec::new();
        let image = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, 90]));
        image.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Jpeg).expect("encodes");
        bytes
    };
    let scene = Scene::new()
        .with_samples(1)
        .file("Bag/good.jpg", &jpeg)
        .file("Bag/empty.png", [])
        .file("Bag/cut.jpg", &jpeg[..jpeg.len() / 2])
        .file("Bag/huge.png", &huge)
        .file("Bag/animation.png", b"GIF89a\x01\x00\x01\x00\x80\x00\x00")
        .file("Bag/text.png", "not an image")
        .file("Umbrella/unknown.png", &png);
    let text = scene.expect(2, "out", &[]);
    assert!(text.contains("8 images: 2 succeeded, 6 failed"), "{text}");
    for (name, reason) in [
        ("Bag/empty.png", "bad_image"),
        ("Bag/cut.jpg", "bad_image"),
        ("Bag/huge.png", "30000 x 30000"),
        ("Bag/animation.png", "GIF"),
        ("Bag/text.png", "bad_image"),
        ("Umbrella/unknown.png", "unknown_class"),
    ] {
        let text = text.lines().find(|l| l.contains(name)).unwrap_or_else(|| panic!("{name} is not listed in {text}"));
        assert_contains(text, &[reason]);
        assert!(scene.path("out/images").join(name).join("failure.json").is_file());
    }
    let csv = fs::read_to_string(scene.path("out/results.csv")).expect("readable");
    let rows = csv.lines().filter(|l| l.starts_with("Bag/") || l.starts_with("Umbrella/")).count();
    assert_eq!(rows, 8, "{csv}");
    // A mended image is projected when that is asked for, and only then.
    fs::write(scene.path("data/Bag/empty.png"), &png).expect("writable");
    assert!(scene.expect(2, "out", &[]).contains("2 succeeded, 6 failed"));
    assert!(scene.expect(2, "out", &["--retry-failed"]).contains("3 succeeded, 5 failed"));
}

#[test]
fn coco_annotations_with_bad_entries_lose_only_those() {
    let png = fs::read(root().join("samples/images/bag_00_centred.png")).expect("sample");
    let coco = r#"{"images": [
        {"id": 1, "file_name": "a.png", "width": 32, "height": 32}, {"id": 2, "file_name": "b.png", "width": 32, "height": 32},
        {"id": 3, "file_name": "../c.png", "width": 32, "height": 32}, {"id": 4, "file_name": "d.png", "width": 32, "height": 32},
        {"id": 5, "file_name": "e.png", "width": 32, "height": 32}],
        "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [4, 4, 0, 20], "iscrowd": 0},
        {"id": 3, "image_id": 3, "category_id": 1, "bbox": [4, 4, 20, 20], "iscrowd": 0},
        {"id": 4, "image_id": 4, "category_id": 9, "bbox": [4, 4, 20, 20], "iscrowd": 0},
        {"id": 5, "image_id": 5, "category_id": 1, "bbox": [40, 4, 20, 20], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "Bag"}]}"#;
    let mut scene = Scene::new().file("annotations.json", coco);
    for name in ["a.png", "b.png", "d.png", "e.png"] {
        scene = scene.file(name, &png);
    }
    assert_contains(&scene.expect(2, "out", &[]), &["5 images: 1 succeeded, 4 failed", "bad_box", "bad_name"]);
    assert!(!scene.path("c.png").exists() && files(&scene.path("out")).iter().all(|p| p.starts_with(scene.path("out"))));
}

/// A run of two images that got a signal when both had a checkpoint, its exit code, and the losses without that.
fn signalled_run(name: &str) -> (Scene, Option<i32>, BTreeMap<String, Vec<f64>>) {
    let mut scene = Scene::new().with_samples(2);
    scene.params.latent = LatentSearch::basin_cma(40, 6, 60);
    scene.expect(0, "undisturbed", &[]);
    let mut child = scene.command("out", &["--checkpoint-every", "0"]).spawn().expect("basin starts");
    wait_for("the first checkpoints", 120, || files(&scene.path("out/checkpoints")).len() >= 2);
    signal(child.id(), name);
    let code = child.wait().expect("ends").code();
    let undisturbed = scene.losses("undisturbed");
    (scene, code, undisturbed)
}

#[test]
fn an_interrupted_run_saves_and_resumes_to_the_same_result() {
    let (scene, code, undisturbed) = signalled_run("INT");
    assert_eq!(code, Some(130), "interrupted before the end");
    assert_eq!(files(&scene.path("out/checkpoints")).len(), 2, "both images were saved");
    assert_eq!(scene.losses("out").len(), 0);
    scene.expect(0, "out", &[]);
    assert_eq!(scene.losses("out"), undisturbed);
    assert_eq!(files(&scene.path("out/checkpoints")), Vec::<PathBuf>::new());
}

#[test]
fn a_run_can_be_watched_in_a_browser_until_it_ends() {
    // One result is there from before.
    let scene = Scene::new().with_samples(1);
    scene.expect(0, "out", &[]);
    let scene = scene.with_samples(3);
    fs::write(scene.path("data/Bag/empty.png"), "").expect("writable");
    let mut child = scene.command("out", &["--batch-images", "1", "--watch", "127.0.0.1:0"]).spawn().expect("basin starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map(|line| line.expect("text"));
    let address = lines.find_map(|line| line.split_once("dashboard: http://").map(|(_, address)| address.to_owned()));
    let address = address.expect("it says where");
    let get = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        exchange(&address, &request)
    };
    assert_contains(&get("/"), &["/runs/out", "of <span data-f=\"images\">4</span>"]);
    assert_contains(&get("/v1/runs/out/images"), &["Bag/0.png"]);
    assert_contains(&get("/runs/out/picture?key=Bag/0.png&item=generated"), &["image/png"]);
    assert_contains(&lines.last().expect("it says how it ended"), &["run again with --retry-failed"]);
    assert_eq!(child.wait().expect("our child").code(), Some(2), "the empty image failed");
}

#[test]
fn a_killed_run_resumes_from_its_checkpoints_to_the_same_result() {
    let (scene, _, undisturbed) = signalled_run("KILL");
    // A checkpoint that the kill or a disk damaged costs work, not the answer.
    damage(&files(&scene.path("out/checkpoints"))[0]);
    scene.expect(0, "out", &[]);
    assert_eq!(scene.losses("out"), undisturbed);
}

#[test]
fn what_cannot_work_is_refused_with_the_name_of_the_culprit() {
    let scene = Scene::new().with_samples(1);
    assert_contains(&scene.expect(1, "out", &["--model", "/nowhere"]), &["/nowhere/model.json"]);

    copy_folder(&bundled(), &scene.path("model"));
    damage(&scene.path("model/generator.safetensors"));
    assert_contains(&scene.expect(1, "out", &["--model", &scene.text("model")]), &["generator.safetensors", "SHA-256"]);

    fs::write(scene.path("file"), "").expect("writable");
    assert_contains(&scene.expect(1, "file/out", &[]), &["file/out"]);

    assert_contains(&scene.expect(1, "out", &["--seed", "0", "--devices", "gpu"]), &["\"gpu\" is not a device"]);

    scene.expect(0, "done", &[]);
    assert_contains(&scene.expect(1, "done", &["--seed", "5"]), &["another seed", "--out"]);

    assert_contains(&Scene::new().expect(1, "out", &[]), &["data"]);
}

#[test]
fn a_store_that_refuses_a_result_ends_the_run_with_an_error() {
    let scene = Scene::new().with_samples(2);
    // Where the folder of the first image's class must be, there is a file.
    fs::create_dir_all(scene.path("out/images")).expect("writable");
    fs::write(scene.path("out/images/Bag"), "in the way").expect("writable");
    let mut child = scene.command("out", &[]).spawn().expect("basin starts");
    wait_for("the end", 120, || child.try_wait().expect("can be asked").is_some());
    let output = child.wait_with_output().expect("has ended");
    let text = output_text(&output);
    assert!(output.status.code() == Some(1) && text.contains("images/Bag/"), "{text}");
}

/// A run of two bags and coats whose generator was fitted to each.
fn tuned_run() -> Scene {
    let mut scene = Scene::new().with_samples(2);
    scene.params.fine_tune = Some(FineTune { steps: 30, lr: 1e-3, ..FineTune::default() });
    scene.expect(0, "out", &[]);
    scene
}

fn edit(code: i32, scene: &Scene, image: &str, more: &[&str]) -> String {
    let (out, model) = (scene.text("out"), bundled().display().to_string());
    basin(code, &[&["edit", &out, image, "--model", &model], more].concat())
}

#[test]
fn a_generator_is_fitted_to_each_image_and_its_edits_are_blended_back() {
    let scene = tuned_run();
    let (record, objects) = scene.record("Bag/0.png");
    let Some(FineTuned::Kept { steps: 30, distances, lpips, psnr, codes }) = &record.fine_tuned else {
        panic!("{:?}", record.fine_tuned)
    };
    assert!(distances.loss < record.best_seed().loss && lpips.1 < lpips.0 && psnr.is_some_and(|psnr| psnr >= 45.0), "{record:?}");
    assert!(!codes.is_empty());
    basin(0, &["verify", &scene.text("out"), "--deep"]);

    let delta = objects.join("delta.safetensors.zst");
    let text = python_example(&scene, "delta-example", delta.to_str().expect("text"));
    assert_contains(&text, &["gen_z.weight (4096, 128)", "z (64,) of model"]);

    let model = engine::load(&bundled()).expect("bundled");
    let directions = engine::edit::directions(&model);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let results = runtime.block_on(Store::open(&scene.text("out"))).expect("there");
    let projected = runtime.block_on(Projected::read(&results, "Bag/0.png", &model)).expect("a result");
    let edit = |request: EditRequest| projected.edit(&model, &directions, &request).expect("it can be done");
    let stored =
        |file: &str| engine::codec::decode(&fs::read(objects.join(file)).expect("there"), None, 32).expect("a PNG").pixels;
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // A PNG has steps of 1/127.5.
    let (tuned, untuned) = (edit(EditRequest::default()), edit(EditRequest { fine_tuned: false, ..EditRequest::default() }));
    assert!(apart(&tuned.inverted, &stored("tuned.png")) < 0.005, "nothing changed: the stored picture");
    assert!(apart(&untuned.inverted, &stored("inverted.png")) < 0.005);
    assert!(apart(&untuned.generated, &stored("generated.png")) < 0.005);
    assert!(apart(&tuned.inverted, &untuned.inverted) > 0.05);
    let coat = edit(EditRequest { class: Some("Coat".into()), ..EditRequest::default() });
    assert!(apart(&coat.generated, &tuned.generated) > 0.2);
    let moved = edit(EditRequest { moves: [("pc1".to_owned(), 3.0)].into(), ..EditRequest::default() });
    assert!(apart(&moved.generated, &tuned.generated) > 0.05);

    // Outside of the box the blended picture is the target.
    let bbox = record.target_bbox;
    let inside = |i: usize| {
        let (x, y) = ((i % 32) as f64, (i % 1024 / 32) as f64);
        bbox.is_none_or(|b| x >= b.x - 1.0 && x <= b.x + b.width + 1.0 && y >= b.y - 1.0 && y <= b.y + b.height + 1.0)
    };
    assert!((0..3 * 1024).all(|i| inside(i) || coat.blended[i] == projected.stored.target[i]));
    assert!(apart(&coat.blended, &projected.stored.target) > 0.2);
}

#[test]
fn edits_are_written_as_sheets_and_films() {
    let scene = tuned_run();
    let [sheet, gif, webp] = ["sheet.png", "sweep.gif", "sweep.webp"].map(|name| scene.text(name));
    let more = ["--class", "all", "--move", "pc1=1", "--sweep", "4", "--out", &sheet, "--out", &gif, "--out", &webp];
    assert_contains(&edit(0, &scene, "Coat/1.png", &more), &[&sheet, &gif, &webp]);
    let sheet = image::open(sheet).expect("a PNG");
    let (width, height) = (sheet.width(), sheet.height());
    assert!(width > 6 * 100 && height > 10 * 100, "six pictures in ten rows: {width} x {height}");
    let bytes = fs::read(gif).expect("there");
    let decoder = image::codecs::gif::GifDecoder::new(std::io::Cursor::new(bytes)).expect("a GIF");
    let frames = image::AnimationDecoder::into_frames(decoder).collect_frames().expect("whole");
    assert_eq!(frames.len(), 10 * 4 * 2, "each class there and back");
    assert!(fs::read(webp).expect("there").starts_with(b"RIFF"));
}

#[test]
fn an_edit_that_cannot_be_is_refused_with_what_there_is() {
    let scene = tuned_run();
    let refused = |image: &str, more: &[&str], word: &str| assert_contains(&edit(1, &scene, image, more), &[word]);
    refused("Bag/0.png", &["--class", "Dog"], "T-shirt/top");
    refused("Bag/0.png", &["--move", "sideways=1"], "pc16");
    refused("Bag/0.png", &["--class", "Bag", "--strength", "NaN"], "strength");
    refused("Bag/0.png", &["--class", "Bag", "--out", "x.bmp"], "bmp");
    refused("Bag/0.png", &[], "--class NAME");
    refused("Bag/9.png", &["--class", "Coat"], "no result");
    refused("../../Bag/0.png", &["--class", "Coat"], "..");
    assert!(!Path::new("x.bmp").exists() && !Path::new("edit.png").exists());
    assert_contains(&edit(0, &scene, "Bag/0.png", &["--list"]), &["Ankle boot", "pc1"]);

    push_model(scene.dir.path(), "fashion33");
    let (out, other) = (scene.text("out"), scene.text("home/models/fashion33"));
    let text = basin(1, &["edit", &out, "Bag/0.png", "--class", "Coat", "--model", &other]);
    assert_contains(&text, &["fashion33", "fashion32"]);

    damage(&scene.record("Bag/0.png").1.join("delta.safetensors.zst"));
    refused("Bag/0.png", &["--class", "Coat"], "delta.safetensors.zst of image");
    refused("Coat/1.png", &["--class", "Bag", "--strength", "1000"], "not finite");
    assert_contains(&basin(2, &["verify", &out, "--deep"]), &["delta.safetensors.zst of \"Bag/0.png\" is damaged"]);
}

#[test]
fn a_search_can_be_filmed() {
    let scene = Scene::new().with_samples(2);
    scene.expect(0, "out", &["--record", &scene.text("films")]);
    let unfilmed = scene.losses("out");
    for image in ["Bag/0.png", "Coat/1.png"] {
        let bytes = fs::read(scene.path("films").join(format!("{image}.webp"))).expect("a film");
        let frames = bytes.windows(4).filter(|w| w == b"ANMF").count();
        // Two generations of each search, one descent, and the answer for some time.
        assert!(frames > 5, "{frames} frames");
    }
    scene.expect(0, "again", &[]);
    assert_eq!(scene.losses("again"), unfilmed, "looking changes nothing");
}

/// `basin serve-edits` of a run, and its address: the system gives the port.
fn serve_edits(scene: &Scene) -> (Process, String) {
    let mut command = Command::new(program("basin"));
    command.arg("serve-edits").arg(scene.path("out")).arg("--model").arg(bundled());
    command.args(["--listen", "127.0.0.1:0"]).env_remove("BASIN_TOKEN").stderr(Stdio::piped());
    let mut serving = Process(command.spawn().expect("basin starts"));
    let mut line = String::new();
    BufReader::new(serving.0.stderr.take().expect("piped")).read_line(&mut line).expect("readable");
    let address = line.trim().rsplit_once("http://").unwrap_or_else(|| panic!("{line}")).1.to_owned();
    (serving, address)
}

#[test]
fn edits_are_served_to_programs_of_this_machine() {
    let scene = tuned_run();
    let (_serving, address) = serve_edits(&scene);
    let get = |path: &str| {
        let url = format!("http://{address}/v1/runs/out/edit{path}");
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.get(url).call().expect("it answers");
        (answer.status().as_u16(), answer.body_mut().read_to_vec().expect("whole"))
    };
    let (status, options) = get("/options?image=Bag/0.png");
    let options: serde_json::Value = serde_json::from_slice(&options).expect("JSON");
    assert_eq!((status, &options["class"], &options["tuned"]), (200, &"Bag".into(), &true.into()), "{options}");
    assert_eq!(options["classes"].as_array().map(Vec::len), Some(10));

    let picture = |path: &str| {
        let (status, bytes) = get(path);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
        image::load_from_memory(&bytes).expect("a PNG").to_rgb8()
    };
    let tuned = image::open(scene.record("Bag/0.png").1.join("tuned.png")).expect("there").to_rgb8();
    assert_eq!(picture("?image=Bag/0.png&view=inverted"), tuned, "nothing changed: the stored picture");
    let coat = picture("?image=Bag/0.png&class=Coat&strength=0.8&move.pc1=1&truncation=0.9");
    assert_ne!(coat, picture("?image=Bag/0.png"));
    assert_eq!(coat, picture("?image=Bag/0.png&class=Coat&strength=0.8&move.pc1=1&truncation=0.9"));

    for (path, expected, word) in [
        ("?image=Bag/9.png", 404, "no result"),
        ("?image=../../../etc/passwd", 422, ".."),
        ("?image=Bag/0.png&class=Dog", 422, "Ankle boot"),
        ("?image=Bag/0.png&strength=much", 422, "strength"),
        ("?image=Bag/0.png&strength=1e300&class=Bag", 422, "strength"),
        ("?image=Bag/0.png&move.up=1", 422, "pc1"),
        ("?image=Bag/0.png&view=all", 422, "blended"),
        ("?image=Bag/0.png&move.pc1=1000", 422, "smaller values"),
        ("?class=Bag", 422, "image"),
    ] {
        let (status, body) = get(path);
        let body = String::from_utf8_lossy(&body);
        assert!(status == expected && body.contains(word), "{path}: {status} {body}");
    }
    let request = "GET /v1/runs/out/edit/options?image=Bag/0.png HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    let answer = exchange(&address, request);
    assert!(answer.starts_with("HTTP/1.1 401"), "another name for this machine is not served: {answer}");
}
