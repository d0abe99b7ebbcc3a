//! Named tensors: trainable parameters with their Adam moments, and buffers.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor, no_grad};

struct Entry {
    name: String,
    tensor: Tensor,
    moments: Option<(Tensor, Tensor)>,
}

/// The tensors of one network, in the order of their creation.
#[derive(Default)]
pub struct Vars {
    entries: Vec<Entry>,
    steps: i64,
}

/// Adam's constants.
#[derive(Clone, Copy)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Vars {
    /// Registers a trainable tensor and returns a handle to the same storage.
    pub fn parameter(&mut self, name: &str, value: Tensor) -> Tensor {
        let tensor = value.detach().set_requires_grad(true);
        let moments = Some((tensor.zeros_like().detach(), tensor.zeros_like().detach()));
        self.entries.push(Entry { name: name.to_owned(), tensor: tensor.shallow_clone(), moments });
        tensor
    }

    /// Registers a tensor that is not trained.
    pub fn buffer(&mut self, name: &str, value: Tensor) -> Tensor {
        let tensor = value.detach();
        self.entries.push(Entry { name: name.to_owned(), tensor: tensor.shallow_clone(), moments: None });
        tensor
    }

    /// The parameters, for `Tensor::run_backward`.
    pub fn parameters(&self) -> Vec<&Tensor> {
        self.entries.iter().filter(|e| e.moments.is_some()).map(|e| &e.tensor).collect()
    }

    /// The parameters with their names.
    pub fn parameters_named(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().filter(|e| e.moments.is_some()).map(|e| (e.name.as_str(), &e.tensor))
    }

    /// All tensors by name, without the moments.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        self.entries.iter().map(|e| (e.name.clone(), e.tensor.detach())).collect()
    }

    /// Sets every parameter to the value of the same name.
    pub fn assign(&mut self, values: &[(String, Tensor)]) -> Result<()> {
        let values: std::collections::HashMap<&str, &Tensor> = values.iter().map(|(n, t)| (n.as_str(), t)).collect();
        no_grad(|| {
            for e in self.entries.iter_mut().filter(|e| e.moments.is_some()) {
                copy(&mut e.tensor, values.get(e.name.as_str()).with_context(|| format!("no value for {}", e.name))?)?;
            }
            Ok(())
        })
    }

    /// One Adam step (Kingma and Ba 2015, Algorithm 1) with gradients in the order of `parameters`.
    pub fn adam_step(&mut self, gradients: &[Tensor], lr: f64, adam: Adam) {
        self.steps += 1;
        let correction1 = 1.0 - adam.beta1.powi(self.steps as i32);
        let correction2 = 1.0 - adam.beta2.powi(self.steps as i32);
        no_grad(|| {
            let trained = self.entries.iter_mut().filter_map(|e| e.moments.as_mut().map(|m| (&mut e.tensor, m)));
            for ((tensor, (m, v)), g) in trained.zip(gradients) {
                let _ = m.lerp_(g, 1.0 - adam.beta1);
                let _ = v.g_mul_scalar_(adam.beta2).addcmul_(&(g * (1.0 - adam.beta2)), g);
                let denominator = (&*v / correction2).sqrt() + adam.eps;
                let _ = tensor.addcdiv_(&(&*m * (-lr / correction1)), &denominator);
            }
        });
    }

    /// Everything needed to go on, by name.
    pub fn state(&self, prefix: &str) -> Vec<(String, Tensor)> {
        let mut out = vec![(format!("{prefix}.steps"), Tensor::from(self.steps).view([1]))];
        for e in &self.entries {
            out.push((format!("{prefix}.{}", e.name), e.tensor.detach()));
            if let Some((m, v)) = &e.moments {
                out.push((format!("{prefix}.{}@m", e.name), m.shallow_clone()));
                out.push((format!("{prefix}.{}@v", e.name), v.shallow_clone()));
            }
        }
        out
    }

    /// Takes over what `state` wrote.
    pub fn restore(&mut self, prefix: &str, state: &std::collections::HashMap<String, Tensor>) -> Result<()> {
        let get = |name: &str| state.get(name).with_context(|| format!("the training state lacks {name}"));
        self.steps = get(&format!("{prefix}.steps"))?.int64_value(&[0]);
        no_grad(|| {
            for e in &mut self.entries {
                copy(&mut e.tensor, get(&format!("{prefix}.{}", e.name))?)?;
                if let Some((m, v)) = &mut e.moments {
                    copy(m, get(&format!("{prefix}.{}@m", e.name))?)?;
                    copy(v, get(&format!("{prefix}.{}@v", e.name))?)?;
                }
            }
            Ok(())
        })
    }
}

fn copy(into: &mut Tensor, from: &Tensor) -> Result<()> {
    ensure!(into.size() == from.size(), "the training state has {:?} where {:?} is needed", from.size(), into.size());
    into.copy_(from);
    Ok(())
}

/// Writes safetensors through a temporary file, so that a crash leaves the old file.
pub fn write_safetensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let part = path.with_extension("part");
    let contiguous: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(n, t)| (n.as_str(), if t.kind() == Kind::Int64 { t.shallow_clone() } else { t.contiguous() }))
        .collect();
    Tensor::write_safetensors(&contiguous, &part).with_context(|| format!("cannot write {}", part.display()))?;
    std::fs::rename(&part, path).with_context(|| format!("cannot rename {}", part.display()))
}

/// Reads safetensors into a map.
pub fn read_safetensors(path: &Path) -> Result<std::collections::HashMap<String, Tensor>> {
    let tensors = Tensor::read_safetensors(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(tensors.into_iter().collect())
}
