from spatial_vlm.evaluation.contrastive_pairs import both_right, of_one_caption, of_one_image
from spatial_vlm.evaluation.scores import score_statements

LEFT, RIGHT = "The cat is left of the mug.", "The cat is right of the mug."


def test_pairs_of_one_image_differ_in_relation_or_direction(predict):
  answers = [
    predict(0, 1, 1, caption=LEFT, image="a"),
    predict(1, 0, 0, caption="The mug is left of the cat.", image="a"),  # direction; both right
    predict(2, 1, 1, caption="The mug is right of the cat.", image="b"),
    predict(3, 0, 1, caption="The mug contains the cat.", image="b"),  # relation; one wrong
    predict(4, 1, 1, caption=LEFT, image="c"),
    predict(5, 0, 0, caption="The cat is left of the dog.", image="c"),  # another object
    predict(6, 1, 1, caption=LEFT, image="d"),
    predict(7, 0, 0, caption=LEFT, image="e"),  # another image
    predict(8, 1, 1, caption=LEFT, image="f"),
    predict(9, 1, 1, caption="The CAT is near the mug.", image="f"),  # both are true
    predict(10, 1, 1, caption="Left of it.", image="g"),
    predict(11, 0, 0, caption="Right of it.", image="g"),  # no statement of VSR's grammar
  ]
  assert both_right(answers, of_one_image) == {(1, 0): True, (3, 2): False}
  assert both_right(answers[::-1], of_one_image) == both_right(answers, of_one_image)
  rate = score_statements(answers)["image_pairs"]
  assert rate and (rate["right"], rate["n"]) == (1, 2)


def test_answers_without_the_name_of_their_image_make_no_pair_of_one_image(predict):
  answers = [predict(0, 1, 1, caption=LEFT), predict(1, 0, 0, caption=RIGHT)]
  assert both_right(answers, of_one_image) == {}
  assert score_statements(answers)["image_pairs"] is None


def test_a_pair_is_named_by_its_ids(predict):
  answers = [
    predict(7, 0, 0, caption=LEFT),
    predict(3, 1, 1, caption=LEFT),
    predict(4, 1, 0, caption=LEFT),
  ]
  assert both_right(answers, of_one_caption) == {(7, 3): True}
