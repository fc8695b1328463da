"""The model card: a README.md that says what a trained model is, what it cost and how to load it.

Floor 4. `render` is a pure function from typed facts to markdown; `of_training` reads those facts from the folder
that a training leaves, and a caller that knows more (scores, data, the costs of all stages) adds it. Nothing is
guessed: what is not known is left out, a licence is named only where the base model's own files name it, and a
place on this machine is never told. Needs no torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft import provenance as made_by
from upft.hashing import canonical
from upft.ledger import FILE as LEDGER
from upft.ledger import Ledger
from upft.report import wording as w
from upft.specs import ContentRef, EvaluateSpec, Generated, HubRef, QuestionsSpec, TrainSpec
from upft.statistics import Estimate, Paired

FILE = "README.md"
METHODS = {
    "upft": ("Unsupervised Prefix Fine-Tuning (UPFT)", "2503.02875"),
    "sft": ("Fine-tuning on the model's own unfiltered solutions (SFT)", "2503.02875"),
    "rft": ("Rejection sampling fine-tuning (RFT)", "2308.01825"),
}
"""Name and arXiv number; SFT is as the paper on UPFT has it."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's max_lora_rank takes (0.32)."""
CITATION = """@misc{ji2025upft,
  title  = {The First Few Tokens Are All You Need: An Efficient and Effective Unsupervised Prefix Fine-Tuning Method
            for Reasoning Models},
  author = {Ji, Ke and Xu, Jiahao and Liang, Tian and Liu, Qiuzhi and He, Zhiwei and Chen, Xingyu and Liu, Xiaoyuan and
            Wang, Zhijie and Chen, Junying and Wang, Benyou and Tu, Zhaopeng and Mi, Haitao and Yu, Dong},
  year   = {2025},
  eprint = {2503.02875},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class License:
    """As the base model's own card has it: identifier, and name and link where the identifier is `other`."""

    id: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Score:
    """One task, base and trained model on the same questions. spec: how they were asked; judged: answers of both that a judge
    accepted and the rule did not, None where no judge was asked."""

    spec: EvaluateSpec
    questions: int
    base: Estimate
    trained: Estimate
    paired: Paired
    judged: int | None = None


@dataclass(frozen=True)
class Facts:
    """What a card tells. build, rows and summary: spec, rows.json and train.json of the stages; specs: title ->
    resolved settings as hashed; costs: (stage, ledger) in order. The fields with a default are known later."""

    train: TrainSpec
    build: Mapping[str, Any]
    rows: Mapping[str, Any]
    summary: Mapping[str, Any]
    costs: tuple[tuple[str, Ledger], ...]
    specs: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str | None
    license: License | None
    name: str | None = None
    data: QuestionsSpec | None = None
    scores: tuple[Score, ...] = ()


def of_training(spec: TrainSpec, rows: Path, trained: Path) -> Facts:
    """The facts in the artifact `rows` and in the folder of a training, which may lack its provenance still."""
    build = json.loads((rows / "spec.json").read_text(encoding="utf-8"))["spec"]
    made = trained / "provenance.json"
    provenance = json.loads(made.read_text(encoding="utf-8")) if made.is_file() else made_by.provenance(time.time())
    costs = [(title, Ledger.read(folder)) for title, folder in (("build rows", rows), ("train", trained))
             if (folder / LEDGER).is_file()]
    return Facts(spec, build, json.loads((rows / "rows.json").read_text(encoding="utf-8")),
                 json.loads((trained / "train.json").read_text(encoding="utf-8")),
                 tuple(costs), {"build": build, "train": canonical(spec)}, provenance["versions"], provenance["git"],
                 license_of(spec.model.source))


def write(folder: Path, facts: Facts) -> None:
    """Write the card into the folder of a model, or of an adapter (which has no config.json: that is its base's)."""
    (folder / FILE).write_text(render(facts, adapter=not (folder / "config.json").is_file()), encoding="utf-8")


def write_verifier(folder: Path, spec: TrainSpec, pairs: Path, summary: Mapping[str, Any]) -> None:
    """Write the card of a verifier: it ranks solutions and writes none. pairs: the artifact it was trained on."""
    source, made = spec.model.source, json.loads((pairs / "pairs.json").read_text(encoding="utf-8"))
    base = f"[{source.id}](https://huggingface.co/{source.id}/tree/{source.revision})" if isinstance(source, HubRef) else (
        f"a model in a local folder (SHA-256 of its files `{source.sha256}`)")
    licence = license_of(source)
    front = ["tags: [verifier, dpo]", *([] if licence is None else [f"license: {json.dumps(licence.id)}"])]
    epochs = f"{spec.epochs} epoch{'s' * (spec.epochs != 1)}"
    text = "\n".join(["---", *front, "---", "", f"""# A verifier after V-STaR

It ranks solutions and is not meant to write any: {base}, trained with DPO ([arXiv:2305.18290](https://arxiv.org/abs/2305.18290),
beta {spec.beta:g}) on {w.count(made['pairs'])} pairs of a right and a wrong solution of its own, as
[arXiv:2402.06457](https://arxiv.org/abs/2402.06457) does. Of several solutions to one question take the one with the highest
log-probability under this model.

- AdamW: lr {spec.lr:g}, {spec.batch_size} pairs a step, {epochs}, {spec.precision.name}, seed {spec.seed}
- {w.count(summary['steps'])} steps; loss {summary['first_loss']:.4f} at the first, {summary['last_loss']:.4f} at the last
  (0.6931 = log 2 is that of the base model)
"""])
    (folder / FILE).write_text(text, encoding="utf-8")


def render(facts: Facts, adapter: bool = False) -> str:
    """The whole README.md; `adapter` is for a folder that holds the adapter without the base model's weights."""
    parts = [_front(facts, adapter), f"# {_title(facts)}", _opening(facts, adapter)]
    if facts.scores:
        parts += ["## Scores", _scores(facts)]
    parts += ["## Training", _training(facts), "## Use", _use(facts, adapter), "## Cost", _costs(facts),
              "## Settings", _settings(facts), "## Citation", f"```bibtex\n{CITATION}\n```"]
    return "\n\n".join(parts) + "\n"


def license_of(source: ContentRef | HubRef) -> License | None:
    """The licence that the base model's card names; `other`, linked to LICENSE, where there is only such a file."""
    from omegaconf import OmegaConf

    text = _base_card(source)
    if text is not None and text.startswith("---\n") and "\n---" in text[4:]:
        try:
            fields: Any = OmegaConf.to_container(OmegaConf.create(text[4:text.index("\n---", 4) + 1]))
        except Exception:  # a foreign card may hold anything; a licence that cannot be read is not named
            fields = {}
        if isinstance(fields, dict) and isinstance(fields.get("license"), str):
            link = fields.get("license_link")
            if isinstance(source, HubRef) and link is not None and "://" not in str(link):
                link = f"https://huggingface.co/{source.id}/blob/{source.revision}/{link}"
            return License(fields["license"], fields.get("license_name"), link)
    if isinstance(source, ContentRef) and (Path(source.path) / "LICENSE").is_file():
        return License("other", None, "LICENSE")
    return None


def _base_card(source: ContentRef | HubRef) -> str | None:
    try:
        if isinstance(source, ContentRef):
            return (Path(source.path) / FILE).read_text(encoding="utf-8")
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(source.id, FILE, revision=source.revision)).read_text(encoding="utf-8")
    except Exception:  # no card, no network, no access: a training is not lost for it
        return None


def _front(facts: Facts, adapter: bool) -> str:
    """YAML front matter; each value as JSON, which YAML reads as it stands."""
    source, fields = facts.train.model.source, dict[str, Any]()
    if isinstance(source, HubRef):
        fields |= {"base_model": source.id, "base_model_relation": "adapter" if adapter else "finetune"}
    fields |= {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation",
               "tags": [str(facts.build["method"]), *(["lora"] if facts.train.lora is not None else [])]}
    if facts.data is not None and isinstance(facts.data.source, HubRef):
        fields["datasets"] = [facts.data.source.id]
    if facts.license is not None:
        fields["license"] = facts.license.id
        fields |= {key: value for key, value in (("license_name", facts.license.name), ("license_link", facts.license.link))
                   if value is not None}
    return "---\n" + "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items()) + "---"


def _method(facts: Facts) -> str:
    filtered = " with the label filter" if facts.build["method"] == "upft" and facts.build["right"] else ""
    name, number = METHODS[str(facts.build["method"])]
    return f"{name}{filtered}, [arXiv:{number}](https://arxiv.org/abs/{number}),"


def _title(facts: Facts) -> str:
    source = facts.train.model.source
    name = facts.name or (source.id.rpartition("/")[2] if isinstance(source, HubRef) else None)
    short = str(facts.build["method"]).upper()
    return f"{name}, {short}" if name else f"A model after {short}"


def _opening(facts: Facts, adapter: bool) -> str:
    source, lora = facts.train.model.source, facts.train.lora
    base = (f"[{source.id}](https://huggingface.co/{source.id}/tree/{source.revision}) at commit `{source.revision}`"
            if isinstance(source, HubRef) else f"a model in a local folder (SHA-256 of its files `{source.sha256}`)")
    what = ("All weights were trained." if lora is None else
            f"These are low-rank adapters (rank {lora.rank}, alpha {lora.alpha:g}), to be loaded on the base model."
            if adapter else f"The low-rank adapters (rank {lora.rank}, alpha {lora.alpha:g}) are added to the weights.")
    rights = ("The base model's files name no licence; its terms hold for this model too." if facts.license is None else
              "The licence above is the base model's, whose terms hold for this model too.")
    return f"{_method(facts)} of {base}. {what} {rights}"


def _scores(facts: Facts) -> str:
    lines = ["Accuracy with 95% intervals; base and trained model were asked the same questions with the same seeds.", "",
             "| task | questions | base | trained | difference, points | |", "|---|---|---|---|---|---|"]
    for one in facts.scores:
        sides = [f"{w.percent(s.value)} {w.interval(s.low, s.high)}" for s in (one.base, one.trained)]
        p = one.paired
        lines.append(f"| {one.spec.task} | {w.count(one.questions)} | {' | '.join(sides)} | {w.signed(p.difference)} "
                     f"{w.interval(p.low, p.high)} | {p.verdict}, {w.p_value(p.p_value)} |")
    lines.append("")
    for one in facts.scores:
        s, drawn = one.spec, one.spec.sampling
        way = "greedy" if drawn.temperature == 0 else (
            f"temperature {_own(drawn.temperature)}, top_p {_own(drawn.top_p)}, top_k {_own(drawn.top_k)}")
        lines.append(f"- {s.task}: {s.protocol.name} protocol; {_questions(s.questions)}; "
                     f"{s.n} answer{'s' * (s.n != 1)} a question, {way}, at most {w.count(s.max_tokens)} tokens, "
                     f"{drawn.engine.name} in {drawn.dtype.name}, seed {drawn.seed}"
                     + ("" if one.judged is None else f"; {w.judged(one.judged)}"))
    return "\n".join(lines)


def _own(value: float | None) -> str:
    return "the model's own" if value is None else f"{value:g}"


def _questions(spec: QuestionsSpec) -> str:
    source = spec.source
    if isinstance(source, HubRef):
        name = f"[{source.id}](https://huggingface.co/datasets/{source.id}) at commit `{source.revision}`, {source.file}"
    elif isinstance(source, Generated):
        name = f"{w.count(source.questions)} generated word problems, split {source.split}, seed {source.seed}"
    else:
        name = f"a local file (SHA-256 `{source.sha256}`)"
    return name + ("" if spec.limit is None else f", the first {w.count(spec.limit)}")


def _training(facts: Facts) -> str:
    t, build, rows, summary = facts.train, facts.build, facts.rows, facts.summary
    keyless = "" if build["right"] else "; no answer key was used"
    lines = [] if facts.data is None else [f"- questions: {_questions(facts.data)}{keyless}"]
    lines += [
        f"- rows: {_rows(build, rows)}; {w.mean(rows['mean_supervised'])} supervised tokens a row",
        f"- loss: next-token cross-entropy on the response alone, mean over {t.reduction.name}s",
        f"- AdamW: lr {t.lr:g}, betas ({t.beta1:g}, {t.beta2:g}), weight decay {t.weight_decay:g}, warm-up "
        f"{100 * t.warmup_ratio:g}% then constant; {t.batch_size} rows a step, {t.epochs} epoch{'s' * (t.epochs != 1)}, "
        f"{t.precision.name}, seed {t.seed}",
    ]
    if "trained_parameters" in summary:
        lines.append(f"- {w.count(summary['trained_parameters'])} of {w.count(summary['parameters'])} parameters trained")
    if "first_loss" in summary:
        lines.append(f"- {w.count(summary['steps'])} steps; loss {summary['first_loss']:.4f} at the first, "
                     f"{summary['last_loss']:.4f} at the last")
    return "\n".join(lines)


def _rows(build: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    chosen = f" that end in the right answer (of {build['traces']} sampled for each question)" if build["right"] else ""
    if build["ratio"] == 1:
        return f"{w.count(rows['trace_rows'])} whole solutions of the model's own{chosen}"
    unit = "tokens" if build["unit"] == "token" else "words"
    found = ", a length that a pilot sampling suggested" if rows["prefix_len_from"] == "diagnosis" else ""
    return (f"{w.count(rows['prefix_rows'])} prefixes of at most {rows['prefix_len']} {unit} of the model's own "
            f"solutions{chosen}{found}, {w.count(rows['trace_rows'])} whole solutions (share asked for: {build['ratio']:g})")


def _use(facts: Facts, adapter: bool) -> str:
    source, prompt = facts.train.model.source, facts.build["prompt"]
    system = prompt["system_prompt"]
    messages = [*([] if system is None else [{"role": "system", "content": system}]),
                {"role": "user", "content": prompt["user_template"].replace("{question}", "What is 3 + 4 * 2?")}]
    asked = f"messages = {json.dumps(messages, ensure_ascii=False)}\n"
    kind, module = ("AutoPeftModelForCausalLM", "peft") if adapter else ("AutoModelForCausalLM", "transformers")
    imports = ("from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer" if adapter else
               f"from {module} import AutoModelForCausalLM, AutoTokenizer")
    code = (f'trust_remote_code = {facts.train.model.trust_remote_code}\n' if facts.train.model.trust_remote_code else "")
    trust = ", trust_remote_code=trust_remote_code" if code else ""
    transformers = f"""{imports}

{code}folder = "."  # this folder, or its id on the hub
model = {kind}.from_pretrained(folder, dtype="auto"{trust})
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
{asked}inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=512)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
    lora = facts.train.lora
    if adapter and lora is not None:
        base = f'"{source.id}", revision="{source.revision}"' if isinstance(source, HubRef) else '"FOLDER OF THE BASE MODEL"'
        room = next((r for r in VLLM_RANKS if r >= lora.rank), None)
        vllm = None if room is None else f"""from vllm import LLM
from vllm.lora.request import LoRARequest

llm = LLM({base}, enable_lora=True, max_lora_rank={room}{trust.replace('=trust_remote_code', '=True')})
{asked}answer = llm.chat(messages, lora_request=LoRARequest("adapter", 1, "."))
print(answer[0].outputs[0].text)"""
    else:
        vllm = f"""from vllm import LLM

llm = LLM("."{trust.replace('=trust_remote_code', '=True')})
{asked}print(llm.chat(messages)[0].outputs[0].text)"""
    plain = [] if facts.build["ratio"] == 1 else [
        "Ask the plain question: the task suffix of the prefix rows belongs to training only."]
    parts = [*plain, f"```python\n{transformers}\n```"]
    parts.append("vLLM takes no adapter of this rank; merge it first." if vllm is None else f"```python\n{vllm}\n```")
    return "\n\n".join(parts)


def _costs(facts: Facts) -> str:
    rows = list(facts.costs)
    if len(rows) > 1:
        whole = Ledger()
        for _, ledger in rows:
            whole = whole.plus(ledger)
        rows.append(("all", whole))
    lines = ["| stage | prompt tokens | sampled tokens | trained tokens | forward tokens | computation | time | peak memory "
             "| peak GPU memory |", "|---|---|---|---|---|---|---|---|---|"]
    for title, x in rows:
        tokens = (x.prompt_tokens, x.sampled_tokens, x.supervised_tokens, x.forward_tokens)
        cells = [title, *(w.or_none(w.count(n), n) for n in tokens), w.or_none(w.flops(x.flops), x.flops),
                 w.seconds(x.seconds), w.memory(x.peak_memory_bytes),
                 w.or_none(w.memory(x.peak_device_bytes), x.peak_device_bytes)]
        lines.append(f"| {' | '.join(cells)} |")
    said = "Trained tokens are the supervised ones, over all epochs; forward tokens count the prompts too."
    return "\n".join([*lines, "", said])


def _settings(facts: Facts) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sorted(facts.versions.items()))
    code = f"; code at commit `{facts.commit}`" if facts.commit else ""
    return (f"Made with {versions}{code}.\n\n```json\n"
            + json.dumps(facts.specs, indent=1, ensure_ascii=False) + "\n```")
