//! `basin study`: the paper's tables as runs.

use super::*;

/// A study of two images with a tiny budget.
impl Scene {
    fn study_command(&self, what: &str, data: &str, out: &str, more: &[&str]) -> Command {
        let mut command = Command::new(program("basin"));
        command.arg("study").arg(what).arg(root().join("benchmarks/data").join(data));
        command.arg("--model").arg(&self.model).arg("--out").arg(self.path(out));
        let limit: &[&str] = if more.contains(&"--limit") { &[] } else { &["--limit", "2"] };
        command.args(["--seeds", "4", "--devices", "cpu"]).args(limit).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn study(&self, code: i32, what: &str, data: &str, out: &str, more: &[&str]) -> String {
        expect(code, &mut self.study_command(what, data, out, more))
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).expect("it is written")
    }

    fn page(&self, out: &str, what: &str) -> serde_json::Value {
        serde_json::from_str(&self.read(&format!("{out}/{what}.json"))).expect("JSON")
    }

    /// Means of the best of the seeds, by row.
    fn best(&self, out: &str, what: &str) -> BTreeMap<String, Vec<f64>> {
        let page = self.page(out, what);
        let rows = page["rows"].as_array().expect("rows").iter().filter(|row| row["left_out"].is_null());
        let numbers = |row: &serde_json::Value| {
            let means = row["means"]["best"].as_array().unwrap_or_else(|| panic!("{row} has no means"));
            means.iter().map(|mean| mean.as_f64().expect("a number")).collect()
        };
        rows.map(|row| (row["slug"].as_str().expect("a slug").to_owned(), numbers(row))).collect()
    }
}

fn judge(name: &str, folder: &str) -> String {
    format!("{name}={}", root().join(folder).display())
}

#[test]
fn a_study_makes_the_papers_tables_and_shares_a_row_between_two() {
    let scene = Scene::new();
    let (vgg, own) = (judge("vgg", "models/fashion32-vgg"), judge("own", "models/fashion32"));
    let more = ["--evaluations", "8", "--judge", &vgg, "--judge", &own];
    scene.study(0, "table1", "centred", "out", &more);
    let rows = scene.best("out", "table1");
    assert_eq!(rows.len(), 18, "{rows:?}");
    for (row, means) in &rows {
        let [.., lpips, vgg, own] = means[..] else { panic!("{row} has {means:?}") };
        // The model's own network as a judge says what the search recorded; the other one says something else.
        assert!((own - lpips).abs() < 1e-4 * lpips, "{row}: {own} and {lpips}");
        assert!((vgg - lpips).abs() > 0.01 * lpips, "{row}: {vgg} and {lpips}");
    }
    let text = scene.read("out/table1.md");
    let parts = ["BasinCMA + spatial + colour + encoder", "| 8 x 4 |", "average vgg", "## What the paper says", "halving"];
    assert_contains(&text, &parts);

    // The numbers in the margin and two images; targets and eighteen rows.
    let grid = image::open(scene.path("out/table1-grid.png")).expect("a picture");
    assert_eq!((grid.width(), grid.height()), (30 + 2 * 68, 4 + 19 * 68));
    assert_contains(&text, &["; 2 Adam; 3 L-BFGS;", "](table1-grid.png)"]);
    assert_contains(&scene.read("out/table1.html"), &["<h2>Differences</h2>", "src=\"data:image/png;base64,"]);

    let before = scene.read("out/judges/vgg/adam.json");
    assert_contains(&scene.study(0, "table2", "centred", "out", &more), &["row 4 of 4, adam", "nothing is left to project"]);
    assert_eq!(scene.best("out", "table2")["adam"], rows["adam"]);
    assert_eq!(scene.read("out/judges/vgg/adam.json"), before);

    let pictures = files(&scene.path("out/class-random/images"));
    for picture in pictures.iter().filter(|path| path.ends_with("inverted.png")) {
        fs::remove_file(picture).expect("it is there");
    }
    assert_contains(&scene.study(0, "table2", "centred", "out", &more), &["no pictures are shown: row class-random"]);
    assert_eq!(scene.best("out", "table2").len(), 4);

    // Two images decide nothing, whatever they say.
    let orderings = scene.page("out", "table1")["orderings"].as_array().expect("orderings").clone();
    assert!(orderings.len() > 8 && orderings.iter().all(|ordering| ordering["verdict"] == "undecided"), "{orderings:?}");

    scene.study(0, "table1", "centred", "out", &[&more[..], &["--rows", "lbfgs,adam"]].concat());
    assert_eq!(scene.best("out", "table1").into_keys().collect::<Vec<_>>(), ["adam", "lbfgs"]);
    let orderings = scene.page("out", "table1")["orderings"].as_array().expect("orderings").clone();
    assert_eq!(orderings.len(), 1, "{orderings:?}");

    // What contradicts is found before there is any work.
    let rows = "--rows names \"cma\"; the rows are class-gaussian, class-random, class-predicted, adam";
    for (asked, problem) in [
        (&["--rows", "adam,cma"][..], rows),
        (&["--evaluations", "8", "--limit", "1"][..], "has 2 images, and 1 are asked for"),
        (&["--judge", &vgg, "--judge", &vgg][..], "two judges have the same name"),
    ] {
        assert_contains(&scene.study(1, "table2", "centred", "out", asked), &[problem]);
    }
    fs::remove_dir_all(scene.path("out/class-gaussian")).expect("it is there");
    let text = scene.study(1, "table2", "centred", "out", &["--evaluations", "16"]);
    assert!(text.contains("latent.steps = 8") && !scene.path("out/class-gaussian").exists(), "{text}");
}

#[test]
fn images_that_fail_or_change_or_cannot_be_judged_are_told() {
    let mut images = files(&root().join("benchmarks/data/centred/images"));
    images.sort();
    let image = |i: usize| fs::read(&images[i]).expect("an image");
    let scene = Scene::new().file("Bag/a.png", image(0)).file("Coat/b.png", image(1)).file("Coat/c.png", []);
    let (data, url) = (scene.path("data"), scene.text("data"));
    let more = ["--evaluations", "8", "--limit", "3"];
    let measured = || scene.page("out", "table2")["images"].as_array().map(Vec::len);

    let text = scene.study(2, "table2", &url, "out", &more);
    assert!(text.contains("run again with --retry-failed") && measured() == Some(2), "{text}");
    assert_contains(&scene.read("out/table2.md"), &["In 2 images there is no box"]);
    fs::write(data.join("Coat/c.png"), image(2)).expect("writable");
    scene.study(0, "table2", &url, "out", &[&more[..], &["--retry-failed"]].concat());
    assert_eq!(measured(), Some(3));

    let mut projections = files(&scene.path("out/class-random/images"));
    projections.retain(|path| path.ends_with("projection.safetensors"));
    fs::write(&projections[0], b"damaged").expect("writable");
    let vgg = judge("vgg", "models/fashion32-vgg");
    let text = scene.study(2, "table2", &url, "out", &[&more[..], &["--judge", &vgg]].concat());
    assert!(text.contains("is left out: judge vgg cannot measure it in row class-random") && measured() == Some(2), "{text}");

    fs::write(data.join("Bag/a.png"), image(5)).expect("writable");
    assert_contains(&scene.study(1, "table2", &url, "out", &more), &["of another file, class or box"]);
}

#[test]
fn errors_by_class_stand_in_a_table_and_a_drawing() {
    let scene = Scene::new();
    let vgg = judge("vgg", "models/fashion32-vgg");
    scene.study(0, "per-class", "centred", "out", &["--evaluations", "8", "--judge", &vgg, "--limit", "5"]);
    let page = scene.page("out", "per-class");
    let classes = page["classes"].as_array().expect("classes");
    let images: u64 = classes.iter().map(|class| class["images"].as_u64().expect("a number")).sum();
    assert_eq!(images, 5);
    let means: Vec<f64> = classes.iter().map(|class| class["errors"][3]["mean"].as_f64().expect("a mean")).collect();
    assert!(means.len() > 1 && means.is_sorted_by(|a, b| a >= b), "{means:?}");
    let svg = scene.read("out/per-class.svg");
    assert_eq!(svg.matches("class=\"bar\"").count(), classes.len(), "{svg}");
    assert_contains(&scene.read("out/per-class.html"), &[svg.trim(), "<h2>By super-class</h2>"]);
    let kinds = page["super_classes"].as_array().expect("super-classes");
    assert_eq!(kinds.iter().map(|kind| kind["images"].as_u64().expect("a number")).sum::<u64>(), 5);
    assert!(kinds.iter().all(|kind| classes.iter().all(|class| class["class"] != kind["class"])), "{kinds:?}");
    assert!(scene.path("out/per-super-class.svg").exists());
    assert_contains(&scene.read("out/per-class.md"), &["](per-class.svg)"]);
}

#[test]
fn a_data_sets_objects_are_compared_with_the_generators() {
    let scene = Scene::new();
    let measure = |code: i32, data: &str, more: &[&str]| {
        let mut command = Command::new(program("basin"));
        command.args(["study", "bias"]).arg(root().join("benchmarks/data").join(data));
        command.arg("--model").arg(&scene.model).arg("--out").arg(scene.path(data));
        expect(code, command.args(["--samples", "40", "--devices", "cpu"]).args(more))
    };
    let overlap = |data: &str| {
        measure(0, data, &[]);
        let page = scene.page(data, "bias");
        assert_eq!(page["objects"][0], 64);
        page["axes"].as_array().expect("axes").iter().map(|axis| axis["overlap"].as_f64().expect("a number")).collect::<Vec<_>>()
    };
    let (centred, offcentre) = (overlap("centred"), overlap("offcentre"));
    // Centres, across and down.
    assert!(offcentre[0] < 0.8 * centred[0] && offcentre[1] < 0.8 * centred[1], "{centred:?} {offcentre:?}");
    let svg = scene.read("centred/bias.svg");
    assert_contains(&scene.read("centred/bias.md"), &["| centre x |", "](bias.svg)"]);
    assert!(scene.read("centred/bias.html").len() > svg.len());
    measure(0, "centred", &[]);
    assert_eq!(scene.read("centred/bias.svg"), svg);

    for (asked, problem) in [(["--mask-from", "detector-box"], "has no detector"), (["--annotations", "none"], "no image of")] {
        assert_contains(&measure(1, "centred", &asked), &[problem]);
    }
}

#[test]
fn a_killed_study_goes_on_to_the_same_numbers() {
    let scene = Scene::new();
    let more = ["--evaluations", "24"];
    scene.study(0, "table3", "offcentre", "whole", &more);
    let mut child = scene.study_command("table3", "offcentre", "out", &more).spawn().expect("basin starts");
    wait_for("the second row", 120, || scene.path("out/ood-adam-transform/run.json").exists());
    signal(child.id(), "KILL");
    child.wait().expect("it was started");
    let mut first = files(&scene.path("out/ood-adam/images"));
    first.retain(|path| path.ends_with("result.json"));
    let attempts = || first.iter().map(|path| fs::read(path).expect("a result")).collect::<Vec<_>>();
    let before = attempts();
    assert_eq!(before.len(), 2);
    assert_contains(&scene.study(0, "table3", "offcentre", "out", &more), &["nothing is left to project"]);
    assert_eq!(attempts(), before);
    assert_eq!(scene.best("out", "table3"), scene.best("whole", "table3"));

    let text = scene.study(1, "table3", "offcentre", "out", &["--evaluations", "25"]);
    assert_contains(&text, &["row ood-adam", "latent.steps = 24"]);
}

#[test]
fn an_interrupted_study_writes_what_it_has_and_says_so() {
    let scene = Scene::new();
    let child = scene.study_command("table2", "centred", "out", &["--evaluations", "4000"]).spawn().expect("basin starts");
    wait_for("work", 120, || !files(&scene.path("out/class-gaussian/attempts")).is_empty());
    signal(child.id(), "INT");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130));
    assert_contains(&output_text(&output), &["run the same command again"]);
    assert_eq!(scene.page("out", "table2")["rows"].as_array().map(Vec::len), Some(0));
}

#[test]
fn rows_that_a_model_cannot_run_are_left_out_with_the_reason() {
    let mut scene = Scene::new();
    let folder = scene.path("plain");
    copy_folder(&scene.model, &folder);
    let plain = ModelManifest { encoder: None, classifier: None, ..manifest(&folder) };
    fs::write(folder.join("model.json"), serde_json::to_vec(&plain).expect("a manifest serialises")).expect("writable");
    scene.model = folder;

    scene.study(0, "table2", "centred", "out", &["--evaluations", "8"]);
    assert_contains(&scene.read("out/table2.md"), &["Predicted is left out: model fashion32 has no classifier"]);
    assert_eq!(scene.best("out", "table2").len(), 3);
    assert_contains(&scene.study(1, "table3", "offcentre", "other", &["--evaluations", "8"]), &["no row could be run"]);
    assert_contains(&scene.study(1, "table2", "centred", "out", &["--judge", "x=nowhere"]), &["cannot load judge x", "nowhere"]);
}
