import json

from bench import trainer


def test_every_training_is_timed_in_every_round(tiny_bert, toy_sst2, tmp_path, capsys):
    path = tmp_path / "trainer.json"
    arguments = ["--steps", "11", "--rounds", "2", "--max-length", "16", "--output", str(path)]
    trainer.main(["--model", tiny_bert, "--data-dir", toy_sst2, *arguments])
    result = json.loads(path.read_text())
    assert set(result["seconds"]) == {trainer.STOCK, *trainer.BASELINES}
    for name, base in trainer.BASELINES.items():
        own, theirs = (result["seconds"][each] for each in (name, base))
        assert len(own) == 2 and min(own) > 0
        ratios = sorted(mine / other for mine, other in zip(own, theirs, strict=True))
        assert ratios[0] <= result["ratio"][name]["median"] <= ratios[1]
    printed = capsys.readouterr().out
    assert "2 rounds" in printed and " of earlybert finetune |" in printed
