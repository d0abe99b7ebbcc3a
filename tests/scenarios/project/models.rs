//! `basin models` and what a model's networks find in images.

use proto::keys::Item;
use state_dict::{Array, Dtype, StateDict};

use super::*;

/// A grey PNG, white where `inside` says so.
fn mask(size: u32, inside: impl Fn(u32, u32) -> bool) -> Vec<u8> {
    let image = image::GrayImage::from_fn(size, size, |x, y| image::Luma([if inside(x, y) { 255 } else { 0 }]));
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).expect("memory");
    png.into_inner()
}

fn sample(name: &str) -> Vec<u8> {
    fs::read(root().join("samples/images").join(name)).expect("a sample")
}

/// The box of a bag among the samples, without its corners.
fn in_bag(x: u32, y: u32) -> bool {
    let (left, top) = (x.wrapping_sub(4), y.wrapping_sub(2));
    left < 25 && top < 28 && left.min(24 - left) + top.min(27 - top) >= 4
}

#[test]
fn the_class_is_predicted_and_the_mask_read_from_a_file() {
    let scene = Scene::new().file("a.png", sample("bag_01_centred.png")).file("b.png", sample("sandal_00_centred.png"));
    let size = image::load_from_memory(&sample("bag_01_centred.png")).expect("a sample").width();
    let scene = scene.file("masks/a.png", mask(size, in_bag)).file("masks/b.png", mask(size + 1, in_bag));
    let asked = ["--class-from", "classifier", "--mask-from", "file:masks/{stem}.png"];
    let text = scene.expect(2, "out", &asked);
    let wrong = format!("the mask is {0} x {0} pixels (image: {size} x {size} pixels)", size + 1);
    assert_contains(&text, &["1 succeeded, 1 failed", "bad_mask", &wrong]);
    let (record, dir) = scene.record("a.png");
    assert_eq!((record.class_name.as_str(), record.class, record.mask), ("Bag", 8, true));
    let found = record.found.as_ref().expect("the class was looked for");
    assert!(found.probability.is_some_and(|p| p > 0.3 && p <= 1.0) && found.detection.is_none(), "{found:?}");
    assert_eq!(record.bbox.map(|b| (b.x, b.y, b.width, b.height)), Some((4.0, 2.0, 25.0, 28.0)));
    let small = image::open(dir.join(Item::Mask.file())).expect("mask.png").to_luma8();
    let bright = small.pixels().filter(|p| p.0[0] > 127).count() as f64 / f64::from(32 * 32);
    let wanted = f64::from((0..size).map(|x| (0..size).filter(|y| in_bag(x, *y)).count() as u32).sum::<u32>());
    let wanted = wanted / f64::from(size * size);
    assert!((bright - wanted).abs() < 0.1 * wanted, "{bright} of the pixels are inside, not {wanted}");

    // An edit is blended back into the mask.
    edit(0, &scene, "a.png", &["--class", "Coat", "--out", &scene.text("edit.png")]);
    assert!(scene.path("edit.png").exists());

    // The same again is nothing new; another mask is another job.
    assert!(scene.expect(2, "out", &asked).contains("nothing is left to project"));
}

#[test]
fn an_outline_of_coco_is_the_mask() {
    let json = r#"{"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "Bag"}], "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [4, 3, 24, 24], "segmentation": [[16, 3, 28, 15, 16, 27, 4, 15]]}]}"#;
    let scene = Scene::new().file("a.png", sample("bag_00_centred.png")).file("annotations.json", json);
    assert_contains(&scene.expect(0, "box", &[]), &["1 succeeded"]);
    scene.expect(0, "outline", &["--mask-from", "outline"]);
    let (boxed, outlined) = (records(&scene.text("box")).remove(0), records(&scene.text("outline")).remove(0));
    assert!(!boxed.mask && outlined.mask && boxed.job != outlined.job);
    assert!(outlined.bbox.is_some_and(|b| b.x >= 4.0 && b.x <= 5.0 && b.width >= 22.0 && b.width <= 25.0), "{:?}", outlined.bbox);
    // A diamond is half of its box: what is measured differs.
    assert_ne!(boxed.best_seed().l1, outlined.best_seed().l1);
    basin(0, &["verify", &scene.text("outline"), "--deep"]);
}

#[test]
fn what_the_model_does_not_have_is_refused_before_anything_is_done() {
    let scene = Scene::new().with_samples(1);
    for (asked, problem) in [
        (["--class-from", "category"], "model fashion32 has no categories, which --class-from asks for"),
        (["--mask-from", "detector-mask"], "model fashion32 has no detector, which --mask-from asks for"),
        (["--class-from", "class:Hat"], "model fashion32 has no class \"Hat\", which --class-from asks for"),
        (["--mask-from", "file:mask.png"], "has neither {path} nor {stem}"),
        (["--mask-from", "outlines"], "expected box, outline, detector-box"),
        (["--start-from", "encoder:-1"], "start.sigma is -1"),
    ] {
        let output = scene.command("out", &asked).output().expect("basin starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(problem), "{asked:?}: {text}");
        assert!(!scene.path("out").exists(), "{asked:?} left something");
    }
}

#[test]
fn all_images_can_be_given_one_class() {
    let scene = Scene::new().file("x.png", sample("coat_00_centred.png"));
    scene.expect(0, "out", &["--class-from", "class:Dress"]);
    let (record, _) = scene.record("x.png");
    assert_eq!((record.class_name.as_str(), record.found), ("Dress", None));
}

#[test]
fn the_search_starts_where_the_encoder_says() {
    let scene = Scene::new().with_samples(2);
    scene.expect(0, "random", &[]);
    scene.expect(0, "encoder", &["--start-from", "encoder"]);
    scene.expect(0, "again", &["--start-from", "encoder", "--devices", "cpu,cpu"]);
    let (random, encoder) = (scene.losses("random"), scene.losses("encoder"));
    assert_eq!(encoder, scene.losses("again"), "devices do not change the answer");
    let best = |losses: &BTreeMap<String, Vec<f64>>| -> f64 {
        losses.values().map(|seeds| seeds.iter().copied().fold(f64::INFINITY, f64::min)).sum()
    };
    // After so short a search the start is most of the answer.
    assert!(best(&encoder) < best(&random), "{encoder:?} is no better than {random:?}");
}

fn golden(name: &str) -> PathBuf {
    root().join("crates/projector/tests/golden").join(name)
}

/// Small numbers of both signs.
fn array(shape: &[usize]) -> Array {
    let values = (0..shape.iter().product::<usize>()).map(|i| 0.05 * (i as f32 * 0.7).sin());
    Array { dtype: Dtype::F32, shape: shape.to_vec(), data: values.flat_map(f32::to_le_bytes).collect() }
}

/// Checkpoints of a tiny BigGAN-deep and of LPIPS, as their authors might publish them.
fn checkpoints(scene: &Scene) -> [String; 5] {
    let published = |name: &str| -> StateDict {
        let dict = state_dict::read(&golden(name)).expect("a golden");
        dict.into_iter().filter(|(name, _)| !name.starts_with("test.")).collect()
    };
    let files = ["generator", "features", "heads"].map(|name| scene.text(&format!("{name}.safetensors")));
    let write = |file: &str, dict: StateDict| state_dict::write_safetensors(Path::new(file), &dict).expect("writable");
    write(&files[0], published("biggan_deep.safetensors"));
    let layers =
        [(0, [64, 3, 11, 11]), (3, [192, 64, 5, 5]), (6, [384, 192, 3, 3]), (8, [256, 384, 3, 3]), (10, [256, 256, 3, 3])];
    let trunk = layers.into_iter().flat_map(|(index, shape)| {
        let name = |part: &str| format!("features.{index}.{part}");
        [(name("weight"), array(&shape)), (name("bias"), array(&shape[..1]))]
    });
    // torchvision's file has the classifier, too.
    let spare = ("classifier.6.bias".to_owned(), array(&[1000]));
    write(&files[1], trunk.chain([spare]).collect());
    write(&files[2], published("lpips_alex.safetensors"));
    let classes = scene.text("classes.txt");
    fs::write(&classes, "a\nb\nc\nd\ne\nf\ng\n").expect("writable");
    let config = golden("biggan_deep.config.json").display().to_string();
    let [generator, features, heads] = files;
    [generator, config, features, heads, classes]
}

/// Converts the files of a generator, its configuration, features, heads and perhaps classes, expecting an exit code.
fn convert(code: i32, out: &str, files: &[String], more: &[&str]) -> String {
    let options = ["--generator", "--config", "--features", "--heads", "--classes"];
    let files = options.into_iter().zip(files).flat_map(|(option, file)| [option, file.as_str()]);
    expect(code, Command::new(program("basin")).args(["models", "convert", out]).args(files).args(more))
}

#[test]
fn checkpoints_become_a_model_that_projects() {
    let mut scene = Scene::new();
    let files = checkpoints(&scene);
    let out = scene.text("tiny");
    convert(0, &out, &files, &[]);
    let read = || manifest(&scene.path("tiny"));
    let before = read();
    assert!(before.generator.folded && before.name == "tiny" && before.classes.len() == 7);
    for (command, says) in [("verify", "tiny is complete"), ("describe", "classes       7: a, b, c, d, e, f, g")] {
        assert_contains(&basin(0, &["models", command, &out]), &[says]);
    }
    // Calibrating changes the statistics and so the model; measuring alone changes nothing.
    let figures = scene.text("figures");
    let measure =
        ["models", "calibrate", &out, "--mask-from", "foreground", "--samples", "20", "--devices", "cpu", "--figures", &figures];
    assert_contains(&basin(0, &[&measure[..], &["--dry-run"]].concat()), &["of 20 images: centre (y "]);
    assert_eq!(read(), before);
    basin(0, &measure);
    let calibrated = read();
    assert!(calibrated.objects != before.objects && calibrated.sha256 == before.sha256);
    let mut drawn = harness::files(&scene.path("figures"));
    drawn.sort();
    assert_eq!(drawn, ["boxes.csv", "centres.svg", "sizes.svg"].map(|name| scene.path("figures").join(name)));

    scene.params.seeds = 3;
    let scene = scene.file("a/1.png", sample("bag_00_centred.png"));
    assert_contains(&scene.expect(0, "out", &["--model", &out]), &["1 succeeded"]);
}

#[test]
fn a_checkpoint_that_is_another_one_leaves_no_folder() {
    let scene = Scene::new();
    let files = checkpoints(&scene);
    let out = scene.text("model");
    let damaged = scene.text("damaged.pth");
    let code = b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00trueq\x00\x85R.";
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";
    fs::write(&damaged, [&magic[..], code].concat()).expect("writable");
    let golden = golden("biggan_deep.safetensors").display().to_string();
    for (i, file, says) in [
        (0, &*files[2], "is not the BigGAN-deep of that configuration: tensor embeddings.weight is missing"),
        (0, &*golden, "does not belong to the network"),
        (0, &*damaged, "refused the global \"posix.system\""),
        (3, &*files[0], "is not the perceptual network: tensor lin0.model.1.weight is missing"),
        (1, &*files[4], "as the generator's configuration"),
        (4, "/nowhere/classes.txt", "cannot read the classes /nowhere/classes.txt"),
        (4, &*files[1], "the generator has 7 classes, and"),
    ] {
        let mut others = files.clone();
        others[i] = file.to_owned();
        let text = convert(1, &out, &others, &[]);
        assert_contains(&text, &[says]);
        assert!(!scene.path("model").exists(), "{text}");
        let left = fs::read_dir(scene.dir.path()).expect("readable").flatten();
        assert!(left.into_iter().all(|e| !e.file_name().to_string_lossy().starts_with(".converting")), "{text}");
    }
    convert(0, &out, &files, &[]);
    assert_contains(&convert(1, &out, &files, &[]), &["exists: choose another folder"]);
}

#[test]
fn published_networks_are_listed_described_and_checked_when_they_are_fetched() {
    assert_contains(&basin(0, &["models", "list"]), &["biggan-deep-256", "efficientnet-lite0"]);
    assert_contains(&basin(0, &["models", "describe", "biggan-deep-256"]), &["maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"]);
    assert_contains(&basin(1, &["models", "describe", "biggan-1024"]), &["basin models list"]);

    let scene = Scene::new().file("lpips-0.1-alex.pth", "not it").file("lpips-0.1-vgg.pth", "neither");
    let (mirror, downloads) = (scene.text("data"), scene.text("downloads"));
    let fetch = |name: &str| basin(1, &["models", "fetch", name, "--mirror", &mirror, "--downloads", &downloads]);
    assert_contains(&fetch("lpips-alex"), &["lpips-0.1-alex.pth", "df73285e"]);
    assert_contains(&fetch("lpips-squeeze"), &["lpips-0.1-squeeze.pth"]);
}

/// What `infra/published/setup.sh` fetched.
fn published(name: &str) -> PathBuf {
    prepared(&format!("published/{name}"), "infra/published/setup.sh")
}

/// The published file becomes the perceptual network of a tiny generator.
#[test]
fn st_lpips_is_fetched_converted_and_searched_with() {
    let mut scene = Scene::new();
    let [generator, config, _, _, classes] = checkpoints(&scene);
    let (mirror, downloads, out) = (published("").display().to_string(), scene.text("downloads"), scene.text("tiny"));
    let into = scene.text("judges");
    let fetch = ["models", "fetch", "st-lpips-alex", "--mirror", &mirror, "--downloads", &downloads, "--into", &into];
    assert_contains(&basin(0, &fetch), &["st-lpips-alex.pth", "b356b382", "verified", "basin study --judge"]);
    let judge = scene.path("judges/st-lpips-alex");
    assert_eq!(fs::read_dir(&judge).expect("a judge").count(), 3, "layers, weights and a card");
    assert_contains(&fs::read_to_string(judge.join("README.md")).expect("a card"), &["ST-LPIPS, AlexNet", "BSD-2-Clause"]);
    // It is no model, and nothing is overwritten.
    assert_contains(&basin(1, &["models", "verify", &judge.display().to_string()]), &["model.json"]);
    assert_contains(&basin(1, &fetch), &["is there already"]);
    let weights = format!("{downloads}/st-lpips-alex.pth");
    convert(0, &out, &[generator, config, weights.clone(), weights, classes], &["--perceptual", "st-alex"]);
    assert_contains(&basin(0, &["models", "verify", &out]), &["tiny is complete"]);
    let card = fs::read_to_string(scene.path("tiny/README.md")).expect("a card");
    let source = "Licence: BSD-2-Clause. Source: <https://github.com/abhijay9/ShiftTolerant-LPIPS>";
    assert_contains(&card, &[&format!("- st-lpips-alex.pth: ST-LPIPS, AlexNet with its heads. {source}")]);
    assert_eq!(card.matches("st-lpips-alex.pth").count(), 1, "{card}");

    scene.params.seeds = 3;
    let scene = scene.file("a/1.png", sample("bag_00_centred.png"));
    assert_contains(&scene.expect(0, "out", &["--model", &out]), &["1 succeeded"]);
}

/// A tiny generator with random weights and ImageNet's classes, and the real EfficientNet-Lite0.
#[test]
fn a_real_classifier_gives_real_photographs_their_classes() {
    let scene = Scene::new();
    let [generator, config, features, heads, _] = checkpoints(&scene);
    let mut dict = state_dict::read(Path::new(&generator)).expect("written before");
    dict.insert("embeddings.weight".into(), array(&[8, 1000]));
    state_dict::write_safetensors(Path::new(&generator), &dict).expect("writable");
    let config = fs::read_to_string(config).expect("a golden").replace("\"num_classes\": 7", "\"num_classes\": 1000");
    let (sizes, out) = (scene.text("sizes.json"), scene.text("photographs"));
    fs::write(&sizes, config).expect("writable");
    let classifier = published("efficientnet_lite0.pth").display().to_string();
    let network = ["--classifier", &classifier, "--classifier-kind", "efficientnet-lite0"];
    convert(0, &out, &[generator, sizes, features, heads], &network);

    let photograph = |name: &str| fs::read(published("photographs").join(name)).expect("a photograph");
    let annotations = r#"{"images": [{"id": 1, "file_name": "chelsea.png"}], "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [120, 20, 200, 250]}]}"#;
    let mut scene = scene
        .file("chelsea.png", photograph("chelsea.png"))
        .file("coffee.png", photograph("coffee.png"))
        .file("annotations.json", annotations);
    scene.params.seeds = 3;
    let all = ["--model", &out, "--annotations", "none", "--class-from", "classifier", "--mask-from", "whole"];
    assert_contains(&scene.expect(0, "out", &all), &["2 succeeded"]);
    let classes = ["chelsea.png", "coffee.png"].map(|image| scene.record(image).0.class_name);
    assert_eq!(classes, ["tiger cat", "espresso"]);

    // An annotation that takes the cat for a dog gets one of the dogs.
    assert_contains(&scene.expect(0, "kinds", &["--model", &out, "--class-from", "category"]), &["1 succeeded"]);
    let record = records(&scene.text("kinds")).remove(0);
    assert_eq!(manifest(Path::new(&out)).categories[record.class as usize], "dog");
    assert!(record.found.and_then(|found| found.probability).is_some_and(|p| p > 0.0));
}

#[test]
fn a_plan_follows_from_what_was_measured() {
    let scene = Scene::new().with_samples(3);
    scene.expect(0, "out", &[]);
    let [data, out, params, values] = ["data", "out", "params.json", "values.yaml"].map(|name| scene.text(name));
    let model = bundled().display().to_string();
    let plan = |code: i32, more: &[&str]| basin(code, &[&["plan", &data, "--model", &model, "--params", &params], more].concat());
    let text = plan(0, &["--measured", &out, "--workers", "2", "--price", "3", "--batch-images", "1", "--values", &values]);
    assert_contains(&text, &["images        3 of", "storage"]);
    let written = fs::read_to_string(&values).expect("values");
    let trigger = "batchImages: 1\n  trigger: {imagesPerWorker: 2}";
    assert_contains(&written, &["maxReplicas: 2", "workerHourPrice: 3", trigger, "fewer workers"]);
    let text = plan(0, &["--lane-steps-per-second", "1", "--deadline", "1000", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!((json["estimate"]["workers"].as_u64(), json["question"]["images"].as_u64()), (Some(1), Some(3)));
    let text = plan(1, &["--lane-steps-per-second", "1", "--deadline", "0.0001"]);
    assert_contains(&text, &["no number of workers finishes within 0.0001 hours"]);
    assert_contains(&plan(1, &["--measured", &data, "--workers", "1"]), &["has no summary.json"]);
    let start = Params { latent: LatentSearch::Start, transform: None, ..Params::paper() };
    fs::write(&params, start.to_json()).expect("writable");
    assert_contains(&plan(1, &["--lane-steps-per-second", "1", "--workers", "1"]), &["nothing to plan"]);
}
