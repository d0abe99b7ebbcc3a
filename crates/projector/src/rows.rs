//! Rows of numbers as tensors, and back.

use tch::{Device, Kind, Tensor};

/// Rows of equal length as `[n, length]`, float.
pub(crate) fn rows<'a>(rows: impl IntoIterator<Item = &'a Vec<f32>>, device: Device) -> Tensor {
    let rows: Vec<&[f32]> = rows.into_iter().map(Vec::as_slice).collect();
    Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1]).to_device(device)
}

/// The rows of a float tensor `[n, length]`.
pub(crate) fn to_rows(t: &Tensor) -> Vec<Vec<f32>> {
    let width = t.size()[1] as usize;
    let flat: Vec<f32> = Vec::try_from(t.to_device(Device::Cpu).contiguous().flatten(0, -1)).expect("a float tensor");
    flat.chunks(width).map(<[f32]>::to_vec).collect()
}

/// The numbers of `[n]`, of any kind.
pub(crate) fn to_numbers(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double).to_device(Device::Cpu)).expect("a one-dimensional tensor")
}
