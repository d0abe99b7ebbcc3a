//! Published networks with their real weights on real photographs: what `infra/published/setup.sh` fetches.

use std::collections::BTreeMap;

use projector::nn::efficientnet_lite::{EfficientNetLite, prepare};
use tch::{Kind, Tensor};

mod harness;
use harness::{NamedTensors, build, photograph, published, relative};

/// The tensors of a published checkpoint.
fn checkpoint(name: &str) -> NamedTensors {
    let arrays = state_dict::read(&published().join(format!("{name}.pth"))).expect("weights");
    let tensor = |array: &state_dict::Array| {
        let shape: Vec<i64> = array.shape.iter().map(|&n| n as i64).collect();
        // Counters of batches are no floats.
        array.floats().map(|values| Tensor::from_slice(&values).view(shape.as_slice()))
    };
    arrays.iter().filter_map(|(name, array)| Some((name.clone(), tensor(array)?))).collect()
}

/// What the reference says of a photograph: class indices and logits, best first, and sum and norm of all logits.
#[derive(serde::Deserialize)]
struct Answer {
    top5: Vec<i64>,
    logits: Vec<f32>,
    sum: f64,
    norm: f64,
}

#[test]
fn efficientnet_lite0_sees_in_real_photographs_what_the_reference_sees() {
    let network = build(checkpoint("efficientnet_lite0"), EfficientNetLite::load);
    let answers: BTreeMap<String, Answer> =
        serde_json::from_str(include_str!("golden/efficientnet_lite0_photographs.json")).expect("answers");
    assert_eq!(answers.len(), 10);
    for (name, answer) in answers {
        let logits = network.logits(&prepare(&photograph(&name).unsqueeze(0))).squeeze_dim(0);
        let (values, indices) = logits.topk(5, 0, true, true);
        let found = Vec::<i64>::try_from(indices).expect("indices");
        assert_eq!(found, answer.top5, "{name}");
        // The reference reads JPEG with another decoder, whose pixels differ by a level here and there.
        let limit = if name.ends_with(".jpg") { 1e-2 } else { 1e-4 };
        let top = relative(&values, &Tensor::from_slice(&answer.logits));
        let norm = (logits.norm().double_value(&[]) / answer.norm - 1.0).abs();
        let sum = (logits.sum(Kind::Double).double_value(&[]) - answer.sum).abs() / answer.norm;
        println!("{name}: logits {top:.1e}, norm {norm:.1e}, sum {sum:.1e}");
        assert!(top.max(norm).max(sum) <= limit, "{name}: logits differ by {top:.1e}, norm {norm:.1e}, sum {sum:.1e}");
    }
}
