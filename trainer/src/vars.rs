//! Named tensors: trainable parameters with their Adam moments, and buffers.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::kind::FLOAT_CPU;
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
    /// Each weight under spectral norm, with the vectors u and v that give its norm.
    spectral: Vec<[Tensor; 3]>,
}

/// The constants of Adam, as in its paper.
#[derive(Clone, Copy)]
pub struct Adam {
    pub beta1: f64,
    pub beta2: f64,
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

    /// Registers the vectors u and v of a weight's spectral norm, near those of its largest singular value.
    pub fn spectral(&mut self, name: &str, weight: &Tensor) -> [Tensor; 2] {
        let vectors = [("u", matrix(weight).size()[0]), ("v", matrix(weight).size()[1])].map(|(vector, length)| {
            let start = Tensor::randn([length], FLOAT_CPU);
            self.buffer(&format!("{name}.weight_{vector}"), unit(&start))
        });
        let [mut u, mut v] = vectors;
        power_iterations(weight, &mut u, &mut v, 10);
        self.spectral.push([weight.shallow_clone(), u.shallow_clone(), v.shallow_clone()]);
        [u, v]
    }

    /// Power iterations on u and v of every spectral norm.
    pub fn iterate(&mut self, times: u32) {
        for [weight, u, v] in &mut self.spectral {
            power_iterations(weight, u, v, times);
        }
    }

    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().filter(|e| e.moments.is_some()).map(|e| (e.name.as_str(), &e.tensor))
    }

    /// All tensors by name, without the moments.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        self.entries.iter().map(|e| (e.name.clone(), e.tensor.detach())).collect()
    }

    /// Sets every parameter to the value of the same name.
    pub fn assign(&mut self, values: &[(String, Tensor)]) -> Result<()> {
        let values: HashMap<&str, &Tensor> = values.iter().map(|(n, t)| (n.as_str(), t)).collect();
        no_grad(|| {
            for e in self.entries.iter_mut().filter(|e| e.moments.is_some()) {
                copy(&mut e.tensor, values.get(e.name.as_str()).with_context(|| format!("no value for {}", e.name))?)?;
            }
            Ok(())
        })
    }

    /// One Adam step (Kingma and Ba 2015, Algorithm 1) on the sum of `losses`.
    pub fn adam_step(&mut self, losses: &[impl Borrow<Tensor>], lr: f64, adam: Adam) {
        let parameters: Vec<&Tensor> = self.parameters().map(|(_, tensor)| tensor).collect();
        let gradients = Tensor::run_backward(losses, &parameters, false, false);
        self.steps += 1;
        let correction1 = 1.0 - adam.beta1.powi(self.steps as i32);
        let correction2 = 1.0 - adam.beta2.powi(self.steps as i32);
        no_grad(|| {
            let trained = self.entries.iter_mut().filter_map(|e| e.moments.as_mut().map(|m| (&mut e.tensor, m)));
            for ((tensor, (m, v)), g) in trained.zip(&gradients) {
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
    pub fn restore(&mut self, prefix: &str, state: &HashMap<String, Tensor>) -> Result<()> {
        self.steps = entry(state, &format!("{prefix}.steps"))?.int64_value(&[0]);
        // The handles of `state` share the storage of the tensors.
        no_grad(|| self.state(prefix).into_iter().try_for_each(|(name, mut tensor)| copy(&mut tensor, entry(state, &name)?)))
    }
}

/// A tensor of a training state.
pub fn entry<'a>(state: &'a HashMap<String, Tensor>, name: &str) -> Result<&'a Tensor> {
    state.get(name).with_context(|| format!("the training state lacks {name}"))
}

/// A weight as a matrix, output channels first.
pub fn matrix(weight: &Tensor) -> Tensor {
    weight.reshape([weight.size()[0], -1])
}

fn power_iterations(weight: &Tensor, u: &mut Tensor, v: &mut Tensor, times: u32) {
    no_grad(|| {
        let w = matrix(weight);
        for _ in 0..times {
            v.copy_(&unit(&w.tr().mv(u)));
            u.copy_(&unit(&w.mv(v)));
        }
    });
}

fn unit(x: &Tensor) -> Tensor {
    x / x.norm().clamp_min(1e-12)
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

pub fn read_safetensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    let tensors = Tensor::read_safetensors(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(tensors.into_iter().collect())
}
