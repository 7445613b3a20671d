"""The error users see is one line and status 2; other modules' errors become it."""
import pytest

from clipwsss.errors import InputError, input_errors, run_script


def failing(error: BaseException):
    def main():
        raise error
    return main


@pytest.mark.parametrize("error", [InputError("labels.csv:3: unknown class"), FileNotFoundError("labels.csv"),
                                   ModuleNotFoundError("No module named 'transformers'")])
def test_a_users_error_is_one_line_and_status_2(error, capsys):
    assert run_script(failing(error)) == 2
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_success_interruption_and_faults_of_ours(capsys):
    assert run_script(lambda: None) == 0 and run_script(lambda: 3) == 3
    assert run_script(failing(KeyboardInterrupt())) == 130
    assert "--resume" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a fault"):
        run_script(failing(ValueError("a fault")))


def test_a_leafs_error_becomes_the_users():
    with pytest.raises(InputError, match="^--mask: sizes differ$") as caught, input_errors("--mask: "):
        raise ValueError("sizes differ")
    assert isinstance(caught.value.__cause__, ValueError)
    inner = InputError("a.png: no such mask")
    with pytest.raises(InputError) as caught, input_errors("--mask: "):
        raise inner
    assert caught.value is inner, "what names its file already stays as it is"
    with pytest.raises(TypeError), input_errors("--mask: "):
        raise TypeError


def test_other_errors_where_they_are_asked_for():
    for kind in (TypeError, ValueError):
        with pytest.raises(InputError, match="^a: no list$"), input_errors("a: ", TypeError, ValueError):
            raise kind("no list")


@pytest.mark.parametrize("error, told", [
    (OSError(28, "No space left on device", "runs/a.npz"), "runs/a.npz: No space left on device"),
    (PermissionError(13, "Permission denied"), "Permission denied"),
    (MemoryError(), "out of memory; take smaller batches or crops"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "a loading process was killed"),
    (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "a loading process was killed"),
    (RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory: take smaller batches or crops"),
    (InputError("Caught InputError in DataLoader worker process 0.\nOriginal Traceback:\n  File x\n"
                "clipwsss.errors.InputError: a.png: not a readable image"), "a.png: not a readable image")])
def test_faults_of_the_machine_and_of_other_processes_are_one_line(error, told, capsys):
    assert run_script(failing(error)) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {told}") and line.count("\n") == 1


def test_other_runtime_errors_are_ours():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run_script(failing(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
