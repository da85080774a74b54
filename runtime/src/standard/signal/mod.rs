//! Recurrent networks, transforms, random numbers, optimiser steps, and operators of `ai.onnx.ml`.

mod attention;
mod ml;
mod quantised;
mod random;
mod recurrent;
#[cfg(test)]
mod tests;
mod text;
mod training;
mod transform;
mod trees;

use super::{Entry, Infer, Kernel, infer, row};

/// A row in the domain of classic machine learning.
const fn ml_row(name: &'static str, kernel: Kernel, infer: Infer) -> Entry {
    Entry { domain: "ai.onnx.ml", name, kernel, infer }
}

/// A row in the domain of training.
const fn training_row(name: &'static str) -> Entry {
    Entry { domain: "ai.onnx.preview.training", name, kernel: training::optimise, infer: training::optimise_type }
}

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[
    row("Bernoulli", random::bernoulli, random::like_type),
    row("BlackmanWindow", transform::window, transform::window_type),
    row("CausalConvWithState", attention::causal_conv, attention::causal_conv_type),
    row("DFT", transform::dft, transform::dft_type),
    row("GRU", recurrent::recurrent, recurrent::recurrent_type),
    row("HammingWindow", transform::window, transform::window_type),
    row("HannWindow", transform::window, transform::window_type),
    row("LSTM", recurrent::recurrent, recurrent::recurrent_type),
    row("LinearAttention", attention::linear_attention, attention::linear_attention_type),
    row("MelWeightMatrix", transform::mel_weights, transform::mel_weights_type),
    row("Multinomial", random::multinomial, random::multinomial_type),
    row("RNN", recurrent::recurrent, recurrent::recurrent_type),
    row("RandomNormal", random::random, random::random_type),
    row("RandomNormalLike", random::random_like, random::like_type),
    row("RandomUniform", random::random, random::random_type),
    row("RandomUniformLike", random::random_like, random::like_type),
    row("STFT", transform::stft, transform::stft_type),
    row("TfIdfVectorizer", text::tf_idf, text::tf_idf_type),
    ml_row("ArrayFeatureExtractor", ml::array_feature_extractor, ml::array_feature_extractor_type),
    ml_row("Binarizer", ml::binarizer, infer::same),
    ml_row("LabelEncoder", ml::label_encoder, ml::label_encoder_type),
    ml_row("LinearClassifier", ml::linear_classifier, ml::linear_classifier_type),
    ml_row("LinearRegressor", ml::linear_regressor, ml::linear_regressor_type),
    ml_row("Normalizer", ml::normalizer, ml::same_f32),
    ml_row("Scaler", ml::scaler, ml::same_f32),
    ml_row("TreeEnsemble", trees::tree_ensemble, trees::tree_ensemble_type),
    Entry {
        domain: "com.microsoft",
        name: "DynamicQuantizeLSTM",
        kernel: quantised::lstm,
        infer: quantised::lstm_type,
    },
    training_row("Adagrad"),
    training_row("Adam"),
    training_row("Momentum"),
    Entry {
        domain: "ai.onnx.preview",
        name: "FlexAttention",
        kernel: attention::flex_attention,
        infer: attention::flex_attention_type,
    },
];
