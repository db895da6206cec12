"""The report shows what the result holds, and nothing that the result does not."""

from demo_sample import result

from demo import report


def test_the_report_names_the_figures_and_escapes_what_a_model_wrote() -> None:
    page = report.render(result())
    assert "30.0 %" in page
    assert "The &lt;b&gt;network &amp; more" in page
    assert page.count('<img src="data:image/png;base64,') == 5


def test_an_unknown_figure_is_called_unknown_and_its_target_missed() -> None:
    page = report.render(result())
    assert "unknown" in page
    assert page.count("missed</td>") == 1


def test_a_run_without_elimination_has_no_score_picture() -> None:
    only_all = result()
    del only_all["finetune"]["eliminate"]
    only_all["comparison"] = None
    assert report.render(only_all).count('<img src="data:image/png;base64,') == 4
