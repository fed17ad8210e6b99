"""True captions in German, French, Spanish and Italian: the miniature web is not written in one language.

Sentences are built so that nouns stay in the nominative; colours agree with their noun in gender and number.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.demo.scenes import BACKGROUNDS, COLOURS, OBJECTS, Group, Scene

MASCULINE, FEMININE, NEUTER = "m", "f", "n"


@dataclass(frozen=True, kw_only=True)
class _Language:
    """Words in the order of OBJECTS, COLOURS and BACKGROUNDS."""

    nouns: Sequence[tuple[str, str, str]]  # singular, plural, gender
    colours: Sequence[Mapping[str, str]]  # by gender, "p" + gender for several
    articles: Mapping[str, str]
    numbers: tuple[str, str, str]  # two, three, four
    backgrounds: Sequence[str]
    single: Sequence[str]
    paired: Mapping[str, Sequence[str]]
    colour_first: bool = False


def translate(scene: Scene, language: str, seed: int) -> str:
    """Return a true caption of the scene in `language`, one of LANGUAGES."""
    words = _WORDS[language]
    random_source = random.Random(f"{scene.seed} {language} {seed}")
    phrases = [_describe(group, words) for group in scene.groups]
    background = words.backgrounds[BACKGROUNDS.index(scene.background)]
    template = random_source.choice(words.paired[scene.relation] if scene.relation else words.single)
    text = template.format(a=phrases[0], b=phrases[-1], bg=background)
    return text[0].upper() + text[1:] if random_source.random() < 0.5 else text


def _describe(group: Group, words: _Language) -> str:
    singular, plural, gender = words.nouns[OBJECTS.index(group.object)]
    forms = words.colours[COLOURS.index(group.colour)]
    colour = forms[gender if group.count == 1 else f"p{gender}"]
    noun = singular if group.count == 1 else plural
    number = words.articles[gender] if group.count == 1 else words.numbers[group.count - 2]
    return f"{number} {colour} {noun}" if words.colour_first else f"{number} {noun} {colour}"


def _german(stem: str) -> Mapping[str, str]:
    return {"m": f"{stem}er", "f": f"{stem}e", "n": f"{stem}es", "pm": f"{stem}e", "pf": f"{stem}e", "pn": f"{stem}e"}


def _forms(masculine: str, feminine: str, masculine_plural: str, feminine_plural: str) -> Mapping[str, str]:
    return {"m": masculine, "f": feminine, "pm": masculine_plural, "pf": feminine_plural}


def _pair(singular: str, plural: str) -> Mapping[str, str]:
    return _forms(singular, singular, plural, plural)


_GERMAN = _Language(
    nouns=(
        ("Kreis", "Kreise", MASCULINE),
        ("Quadrat", "Quadrate", NEUTER),
        ("Dreieck", "Dreiecke", NEUTER),
        ("Stern", "Sterne", MASCULINE),
        ("Herz", "Herzen", NEUTER),
        ("Mond", "Monde", MASCULINE),
        ("Haus", "Häuser", NEUTER),
        ("Baum", "Bäume", MASCULINE),
        ("Auto", "Autos", NEUTER),
        ("Fisch", "Fische", MASCULINE),
        ("Blume", "Blumen", FEMININE),
        ("Tasse", "Tassen", FEMININE),
    ),
    colours=tuple(
        _german(stem)
        for stem in (
            "rot",
            "orangefarben",
            "gelb",
            "grün",
            "blau",
            "violett",
            "rosafarben",
            "braun",
            "schwarz",
            "weiß",
        )
    ),
    articles={"m": "ein", "f": "eine", "n": "ein"},
    numbers=("zwei", "drei", "vier"),
    backgrounds=(
        "vor einfarbigem Hintergrund",
        "vor einem zarten Farbverlauf",
        "vor gestreiftem Hintergrund",
        "vor gepunktetem Hintergrund",
        "auf grünem Gras",
        "auf dem Sand",
        "vor dem Meer",
        "in der Nacht",
    ),
    single=(
        "{a} {bg}",
        "auf diesem Bild ist zu sehen: {a} {bg}",
        "Zeichnung: {a} {bg}",
        "hier gibt es etwas: {a} {bg}",
    ),
    paired={
        "left of": ("links {a} und rechts {b} {bg}", "auf diesem Bild: links {a}, rechts {b}"),
        "above": ("oben {a} und unten {b} {bg}", "auf diesem Bild: oben {a}, unten {b}"),
        "inside": ("außen {b} und innen {a} {bg}", "auf diesem Bild: {b}, und in der Mitte {a}"),
    },
    colour_first=True,
)

_FRENCH = _Language(
    nouns=(
        ("cercle", "cercles", MASCULINE),
        ("carré", "carrés", MASCULINE),
        ("triangle", "triangles", MASCULINE),
        ("étoile", "étoiles", FEMININE),
        ("cœur", "cœurs", MASCULINE),
        ("lune", "lunes", FEMININE),
        ("maison", "maisons", FEMININE),
        ("arbre", "arbres", MASCULINE),
        ("voiture", "voitures", FEMININE),
        ("poisson", "poissons", MASCULINE),
        ("fleur", "fleurs", FEMININE),
        ("tasse", "tasses", FEMININE),
    ),
    colours=(
        _pair("rouge", "rouges"),
        _pair("orange", "orange"),
        _pair("jaune", "jaunes"),
        _forms("vert", "verte", "verts", "vertes"),
        _forms("bleu", "bleue", "bleus", "bleues"),
        _forms("violet", "violette", "violets", "violettes"),
        _pair("rose", "roses"),
        _pair("marron", "marron"),
        _forms("noir", "noire", "noirs", "noires"),
        _forms("blanc", "blanche", "blancs", "blanches"),
    ),
    articles={"m": "un", "f": "une"},
    numbers=("deux", "trois", "quatre"),
    backgrounds=(
        "sur un fond uni",
        "sur un léger dégradé",
        "sur un fond à rayures",
        "sur un fond à pois",
        "sur l'herbe verte",
        "sur le sable",
        "devant la mer",
        "pendant la nuit",
    ),
    single=("{a} {bg}", "une image avec {a} {bg}", "sur ce dessin on voit {a} {bg}", "voici {a} {bg}"),
    paired={
        "left of": ("à gauche {a} et à droite {b} {bg}", "une image avec {a} à gauche de {b}"),
        "above": ("en haut {a} et en bas {b} {bg}", "on voit {a} au-dessus de {b}"),
        "inside": ("{a} à l'intérieur de {b} {bg}", "on voit {b} avec {a} au milieu"),
    },
)

_SPANISH = _Language(
    nouns=(
        ("círculo", "círculos", MASCULINE),
        ("cuadrado", "cuadrados", MASCULINE),
        ("triángulo", "triángulos", MASCULINE),
        ("estrella", "estrellas", FEMININE),
        ("corazón", "corazones", MASCULINE),
        ("luna", "lunas", FEMININE),
        ("casa", "casas", FEMININE),
        ("árbol", "árboles", MASCULINE),
        ("coche", "coches", MASCULINE),
        ("pez", "peces", MASCULINE),
        ("flor", "flores", FEMININE),
        ("taza", "tazas", FEMININE),
    ),
    colours=(
        _forms("rojo", "roja", "rojos", "rojas"),
        _pair("naranja", "naranjas"),
        _forms("amarillo", "amarilla", "amarillos", "amarillas"),
        _pair("verde", "verdes"),
        _pair("azul", "azules"),
        _forms("morado", "morada", "morados", "moradas"),
        _pair("rosa", "rosas"),
        _pair("marrón", "marrones"),
        _forms("negro", "negra", "negros", "negras"),
        _forms("blanco", "blanca", "blancos", "blancas"),
    ),
    articles={"m": "un", "f": "una"},
    numbers=("dos", "tres", "cuatro"),
    backgrounds=(
        "sobre un fondo liso",
        "sobre un suave degradado",
        "sobre un fondo de rayas",
        "sobre un fondo de puntos",
        "sobre la hierba verde",
        "sobre la arena",
        "delante del mar",
        "durante la noche",
    ),
    single=("{a} {bg}", "una imagen con {a} {bg}", "en este dibujo se puede ver {a} {bg}", "aquí hay {a} {bg}"),
    paired={
        "left of": ("a la izquierda {a} y a la derecha {b} {bg}", "una imagen con {a} a la izquierda de {b}"),
        "above": ("arriba {a} y abajo {b} {bg}", "se puede ver {a} encima de {b}"),
        "inside": ("{a} dentro de {b} {bg}", "se puede ver {b} con {a} en el centro"),
    },
)

_ITALIAN = _Language(
    nouns=(
        ("cerchio", "cerchi", MASCULINE),
        ("quadrato", "quadrati", MASCULINE),
        ("triangolo", "triangoli", MASCULINE),
        ("stella", "stelle", FEMININE),
        ("cuore", "cuori", MASCULINE),
        ("luna", "lune", FEMININE),
        ("casa", "case", FEMININE),
        ("albero", "alberi", MASCULINE),
        ("macchina", "macchine", FEMININE),
        ("pesce", "pesci", MASCULINE),
        ("fiore", "fiori", MASCULINE),
        ("tazza", "tazze", FEMININE),
    ),
    colours=(
        _forms("rosso", "rossa", "rossi", "rosse"),
        _pair("arancione", "arancioni"),
        _forms("giallo", "gialla", "gialli", "gialle"),
        _pair("verde", "verdi"),
        _pair("blu", "blu"),
        _pair("viola", "viola"),
        _pair("rosa", "rosa"),
        _pair("marrone", "marroni"),
        _forms("nero", "nera", "neri", "nere"),
        _forms("bianco", "bianca", "bianchi", "bianche"),
    ),
    articles={"m": "un", "f": "una"},
    numbers=("due", "tre", "quattro"),
    backgrounds=(
        "su uno sfondo semplice",
        "su uno sfondo sfumato",
        "su uno sfondo a righe",
        "su uno sfondo a pois",
        "sull'erba verde",
        "sulla sabbia",
        "davanti al mare",
        "durante la notte",
    ),
    single=("{a} {bg}", "un'immagine con {a} {bg}", "in questo disegno si vede: {a} {bg}", "ecco {a} {bg}"),
    paired={
        "left of": ("a sinistra {a} e a destra {b} {bg}", "un'immagine con {a} a sinistra e {b} a destra"),
        "above": ("sopra {a} e sotto {b} {bg}", "nel disegno si vede {a} sopra {b}"),
        "inside": ("{a} dentro {b} {bg}", "nel disegno si vede {b} con {a} al centro"),
    },
)

_WORDS: Mapping[str, _Language] = {"de": _GERMAN, "fr": _FRENCH, "es": _SPANISH, "it": _ITALIAN}
LANGUAGES = tuple(_WORDS)
