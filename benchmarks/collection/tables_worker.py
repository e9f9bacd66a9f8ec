"""Trains tabular models and converts them, in a venv of their own: `python tables_worker.py OUT`.

Writes for each model NAME.onnx, NAME.npz (inputs, and the library's own predictions as outputs),
and index.json with what was written.
"""

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import (
    cluster,
    decomposition,
    discriminant_analysis,
    ensemble,
    linear_model,
    naive_bayes,
    neighbors,
    neural_network,
    preprocessing,
    svm,
    tree,
)
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline

IRIS, SUGAR = load_iris(), load_diabetes()
FLOWERS = IRIS.data.astype(np.float32)
NAMES = IRIS.target_names[IRIS.target]
PEOPLE = SUGAR.data.astype(np.float32)
PLACES = np.arange(0, 150, 19)
TEXTS = ["good film", "bad film", "a good day", "a bad day", "good good day", "bad bad film"]

CLASSIFIERS = {
    "logistic regression": linear_model.LogisticRegression(max_iter=500),
    "logistic regression, string labels": linear_model.LogisticRegression(max_iter=500),
    "ridge classifier": linear_model.RidgeClassifier(),
    "perceptron": linear_model.Perceptron(),
    "linear discriminant analysis": discriminant_analysis.LinearDiscriminantAnalysis(),
    "decision tree": tree.DecisionTreeClassifier(max_depth=4, random_state=0),
    "random forest": ensemble.RandomForestClassifier(20, max_depth=4, random_state=0),
    "extra trees": ensemble.ExtraTreesClassifier(20, max_depth=4, random_state=0),
    "gradient boosting": ensemble.GradientBoostingClassifier(n_estimators=20, random_state=0),
    "AdaBoost": ensemble.AdaBoostClassifier(n_estimators=10, random_state=0),
    "bagging": ensemble.BaggingClassifier(n_estimators=5, random_state=0),
    "SVM, RBF kernel": svm.SVC(random_state=0),
    "linear SVM": svm.LinearSVC(random_state=0),
    "k nearest neighbours": neighbors.KNeighborsClassifier(5),
    "Gaussian naive Bayes": naive_bayes.GaussianNB(),
    "multinomial naive Bayes": naive_bayes.MultinomialNB(),
    "MLP classifier": neural_network.MLPClassifier(
        hidden_layer_sizes=(16,), max_iter=400, random_state=0
    ),
    "voting of three": ensemble.VotingClassifier(
        [
            ("a", linear_model.LogisticRegression(max_iter=500)),
            ("b", tree.DecisionTreeClassifier(max_depth=3, random_state=0)),
            ("c", naive_bayes.GaussianNB()),
        ],
        voting="soft",
        flatten_transform=False,
    ),
    "scaler and logistic regression": make_pipeline(
        preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=500)
    ),
}
REGRESSORS = {
    "linear regression": linear_model.LinearRegression(),
    "lasso": linear_model.Lasso(alpha=0.1),
    "Poisson regression": linear_model.PoissonRegressor(),
    "regression tree": tree.DecisionTreeRegressor(max_depth=5, random_state=0),
    "regression forest": ensemble.RandomForestRegressor(20, max_depth=5, random_state=0),
    "support vector regression": svm.SVR(),
    "nearest neighbours regression": neighbors.KNeighborsRegressor(n_neighbors=5),
    "MLP regressor": neural_network.MLPRegressor(
        hidden_layer_sizes=(16,), max_iter=300, random_state=0
    ),
    "polynomial ridge": make_pipeline(preprocessing.PolynomialFeatures(2), linear_model.Ridge()),
    "histogram boosting with missing values": ensemble.HistGradientBoostingRegressor(
        max_iter=20, random_state=0
    ),
    "imputer and regression": make_pipeline(SimpleImputer(), linear_model.LinearRegression()),
}
SEVERAL = {
    "three targets, linear": linear_model.LinearRegression(),
    "three targets, forest": ensemble.RandomForestRegressor(10, max_depth=4, random_state=0),
    "three targets, one boosting each": MultiOutputRegressor(
        ensemble.GradientBoostingRegressor(n_estimators=10, random_state=0)
    ),
}


class Folder:
    """Where models go, and what went there."""

    def __init__(self, path: str) -> None:
        self.path, self.index = Path(path), list[dict[str, str]]()
        self.path.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        name: str,
        convert: Callable[[], Any],
        inputs: Mapping[str, Any],
        *predictions: Any,  # noqa: ANN401
    ) -> None:
        """Write a model; a converter that fails is noted, and no fault of marship.

        The predictions are those of its first outputs, in the form that the file declares.
        """
        file, entry = f"model-{len(self.index)}", {"name": name}
        self.index.append(entry)
        try:
            model = convert()
        except Exception as error:  # converters raise anything
            entry["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return
        (self.path / f"{file}.onnx").write_bytes(model.SerializeToString())
        sides = {f"0/in/{key}": value for key, value in inputs.items()}
        for output, values in zip(model.graph.output, predictions, strict=False):
            is_column = len(output.type.tensor_type.shape.dim) == 2 and np.ndim(values) == 1
            sides[f"0/out/{output.name}"] = np.reshape(values, (-1, 1)) if is_column else values
        np.savez(
            self.path / f"{file}.npz",
            **{k: v.astype(str) if v.dtype == object else v for k, v in sides.items()},
        )
        entry["file"] = file

    def close(self) -> None:
        """Write index.json."""
        (self.path / "index.json").write_text(json.dumps(self.index, indent=1))


def converted(model: Any, types: Any, **options: Any) -> Callable[[], Any]:  # noqa: ANN401
    """skl2onnx's way, with the types as people write them."""
    from skl2onnx import to_onnx

    return lambda: to_onnx(model, initial_types=types, **options)


def floats(count: int) -> list[tuple[str, Any]]:
    """One input of floats."""
    from skl2onnx.common.data_types import FloatTensorType

    return [("float_input", FloatTensorType([None, count]))]


def add_classifiers(folder: Folder) -> None:
    """Classifiers of flowers; every second one with a ZipMap, as the converter does by itself."""
    few = FLOWERS[PLACES]
    for place, (name, model) in enumerate(CLASSIFIERS.items()):
        model.fit(FLOWERS, NAMES if "string" in name or place % 3 == 2 else IRIS.target)
        predictions = [model.predict(few)]
        if hasattr(model, "predict_proba"):
            predictions.append(model.predict_proba(few).astype(np.float32))
        zipped = place % 2 == 1 or name == "linear SVM"  # whose converter has no such option
        options = {} if zipped else {"options": {"zipmap": False}}
        title = f"{name}, ZipMap" if zipped else name
        inputs = {"float_input": few}
        folder.add(title, converted(model, floats(4), **options), inputs, *predictions)


def add_regressors(folder: Folder) -> None:
    """Regressors of one and of three numbers, two with missing values."""
    rows = PEOPLE[PLACES]
    for name, model in REGRESSORS.items():
        table, asked = PEOPLE.copy(), rows.copy()
        if "missing" in name or "imputer" in name:
            table[::7, 2] = asked[::3, 2] = np.nan
        model.fit(table, SUGAR.target)
        predictions = model.predict(asked).astype(np.float32)
        folder.add(name, converted(model, floats(10)), {"float_input": asked}, predictions)
    targets = np.stack([SUGAR.target, SUGAR.target**0.5, -SUGAR.target], axis=1)
    for name, model in SEVERAL.items():
        model.fit(PEOPLE, targets)
        predictions = model.predict(rows).astype(np.float32)
        folder.add(name, converted(model, floats(10)), {"float_input": rows}, predictions)


def add_unsupervised(folder: Folder) -> None:
    """Clusters, projections and outliers."""
    few, inputs = FLOWERS[PLACES], {"float_input": FLOWERS[PLACES]}
    means = cluster.KMeans(3, n_init=3, random_state=0).fit(FLOWERS)
    distances = means.transform(few).astype(np.float32)
    folder.add("k-means", converted(means, floats(4)), inputs, means.predict(few), distances)
    pca = decomposition.PCA(2).fit(FLOWERS)
    folder.add("PCA", converted(pca, floats(4)), inputs, pca.transform(few).astype(np.float32))
    for name, model in {
        "isolation forest": ensemble.IsolationForest(n_estimators=20, random_state=0),
        "local outlier factor": neighbors.LocalOutlierFactor(n_neighbors=10, novelty=True),
        "one-class SVM": svm.OneClassSVM(),
    }.items():
        model.fit(FLOWERS)
        versions = {"target_opset": {"": 18, "ai.onnx.ml": 3}}
        folder.add(name, converted(model, floats(4), **versions), inputs, model.predict(few))


def add_texts(folder: Folder) -> None:
    """Texts and categories, one input for each column."""
    import pandas as pd
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    labels = np.array([1, 0, 1, 0, 1, 0])
    text = [("text", StringTensorType([None, 1]))]
    texts = np.array(TEXTS, dtype=object)
    # lower case needs the locale en_US.UTF-8 in ONNX Runtime
    model = make_pipeline(TfidfVectorizer(lowercase=False), linear_model.LogisticRegression())
    model.fit(texts, labels)
    inputs = {"text": texts.reshape(-1, 1)}
    predictions = model.predict(texts), model.predict_proba(texts).astype(np.float32)
    folder.add("TF-IDF and logistic regression", converted(model, text), inputs, *predictions)
    colours = np.array(["red", "green", "blue", "red", "blue", "green"], dtype=object)
    column = colours.reshape(-1, 1)
    hot = preprocessing.OneHotEncoder(handle_unknown="ignore").fit(column)
    found = hot.transform(column).toarray().astype(np.float32)
    folder.add("one-hot of strings", converted(hot, text), {"text": column}, found)
    ages = np.array([1, 20, 30, 44, 51, 6], np.float32)
    table = pd.DataFrame({"age": ages, "size": ages * 2, "colour": colours})
    parts = [
        ("n", preprocessing.StandardScaler(), ["age", "size"]),
        ("c", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["colour"]),
    ]
    model = make_pipeline(ColumnTransformer(parts), linear_model.LogisticRegression())
    model.fit(table, labels)
    types = [(k, FloatTensorType([None, 1])) for k in ("age", "size")]
    types.append(("colour", StringTensorType([None, 1])))
    inputs = {k: table[[k]].to_numpy() for k in table}
    predictions = model.predict(table), model.predict_proba(table).astype(np.float32)
    folder.add("columns of strings and numbers", converted(model, types), inputs, *predictions)


def add_boosting(folder: Folder) -> None:
    """XGBoost and LightGBM, with missing values."""
    import lightgbm
    import onnxmltools
    import xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("input", FloatTensorType([None, 4]))]
    table = FLOWERS.copy()
    table[::7, 2] = np.nan
    few = table[PLACES]
    for name, model, convert in (
        ("XGBoost classifier", xgboost.XGBClassifier, onnxmltools.convert_xgboost),
        ("XGBoost regressor", xgboost.XGBRegressor, onnxmltools.convert_xgboost),
        ("LightGBM classifier", lightgbm.LGBMClassifier, onnxmltools.convert_lightgbm),
        ("LightGBM regressor", lightgbm.LGBMRegressor, onnxmltools.convert_lightgbm),
    ):
        fitted = model(n_estimators=10, max_depth=3).fit(table, IRIS.target)
        predictions = [fitted.predict(few)]
        if hasattr(fitted, "predict_proba"):
            predictions.append(fitted.predict_proba(few).astype(np.float32))
        else:
            predictions = [np.float32(predictions[0])]
        way = partial(convert, fitted, initial_types=types)
        folder.add(name, way, {"input": few}, *predictions)


def main(out: str) -> None:
    """Write all models."""
    folder = Folder(out)
    for add in (add_classifiers, add_regressors, add_unsupervised, add_texts, add_boosting):
        add(folder)
    folder.close()


if __name__ == "__main__":
    main(sys.argv[1])
