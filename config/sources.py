# Names for public corpora: python prepare.py --input=shakespeare. Add your own.
SOURCES = {
    "shakespeare": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
                   "input.txt",
    "the-verdict": "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/"
                   "01_main-chapter-code/the-verdict.txt",
    "wikitext-103": "https://huggingface.co/datasets/segyges/wikitext-103/resolve/main/"
                    "wiki.train.raw",
    "openwebtext-10k": "https://cdn-datasets.huggingface.co/nlp/datasets/openwebtext/"
                       "openwebtext-10k.tar.xz",
}
